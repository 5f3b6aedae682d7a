"""How close poses are to labels: PCK and OKS, as pure functions of one pose."""
