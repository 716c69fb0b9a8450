//! A whole cluster in one thread and in virtual time: what the simulation tests are made of.
#![forbid(unsafe_code)]

pub mod simulation;
