"""Training, from a config to checkpoints.

    experiment      data, mesh, network, loss, optimizer and step from a config
    train           the loop: batch, step, log, validate, save
    train_step      one update as a pure function
    train_state     what is carried from step to step
    checkpoint      with Orbax
    metric_writer   where numbers go
    run_evaluation  the protocols with a run's network, during it and later
    initial         starting from a model

The losses, the classifier and the optimizer are the modules above this package.
"""
