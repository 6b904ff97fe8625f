"""Weights of other programs: their files, their names, and back. Without torch.

    torch_file       reads and writes PyTorch's checkpoint files
    state_dicts      whose weights are in one, and what they were fed with
    guess            which of our backbones they are for
    folding          colour order and epsilon put into weights that leave

`backbones.torch_names` has the names and layouts of arrays, `convert.imported` makes a
model of what is found.
"""
