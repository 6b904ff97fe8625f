"""What a run will need, before it does.

    plan        the report of `--mode plan`
    rehearsal   the step compiled for devices that need not be here
    gpus        NVIDIA GPUs as its compiler wants to know them
    programs    what a compiled program sends and moves

`backbones.costs` has what a network costs.
"""
