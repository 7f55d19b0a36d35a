"""The DeepSpeed engine: all that knows DeepSpeed, its configuration and its insides, is in this package.

It is written for DeepSpeed 0.19.8. `docs/dependencies.md` lists each private name, with the test that holds DeepSpeed
to it; `tests/distributed` compares layout, norms and updates with plain PyTorch at stages 0 to 3. ``engine`` builds and
configures, ``update_guard`` stands before the update, ``optimizer_state`` says where which numbers lie. What updates
weights is described in ``dit_scale.optim``, which knows no DeepSpeed.
"""
