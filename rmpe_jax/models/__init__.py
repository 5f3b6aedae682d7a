"""Networks: the only place that knows Flax. Each model is two functions, ``init_x`` and ``apply_x``."""
