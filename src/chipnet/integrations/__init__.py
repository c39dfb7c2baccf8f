"""Other people's loops: a callback for `lightning.Trainer`, one for Hugging Face's `Trainer`.

Each lives in a module of its own (`chipnet.integrations.lightning`, `chipnet.integrations.transformers`), so that
nothing is imported that is not used. For Accelerate and for plain loops no adapter is needed: see `examples/`.
"""
