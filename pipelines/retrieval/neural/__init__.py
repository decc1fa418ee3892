"""What the neural sources share: the trainer, the layers, and how events become batches.

Training needs the extra `neural` (JAX and optax) and runs on whatever device JAX finds; a trained
source is a dict of numpy arrays and answers with numpy alone. Every forward pass is therefore
written once, over an array module `xp` that is `jax.numpy` in training and `numpy` in serving.
"""
