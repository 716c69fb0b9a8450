//! Benchmarks: each is a test on small input, checks its result, and names its machine.
//! Nothing is measured here yet. `data/make_public.py` makes the larger public data sets.
#![forbid(unsafe_code)]
