"""What a run will need, before it does.

    plan        the report of `--mode plan`
    rehearsal   the step compiled for devices that need not be here

`backbones.costs` has what a network costs.
"""
