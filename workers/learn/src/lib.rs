//! Knows: sparse L1 logistic regression as arithmetic over lanes of rows and a table of weights.
//! Knows not: sockets, servers, threads, clocks; nothing but [`mod@train`] waits or sends.
//! Called by: workers (lanes), the program that trains (plans).
//! Paper: OSDI'14 §5.1, Algorithm 3, delayed block proximal gradient.
//!
//! Minimised is `F(w) = sum_i ln(1 + exp(-y_i <w, x_i>)) + lambda * |w|_1`, sums not means, where every row has one
//! more feature than the file: the constant 1, the last index, penalised like the others.
//!
//! # One epoch
//!
//! 1. *Certificate*, at a quiescent point: every lane pushes its full gradient and its losses, then its part of the
//!    dual value ([`lane`]); everybody computes primal, dual, gap ([`certificate`]) and, from them, the same
//!    decision ([`plan`]): stop, or jump and run a list of rounds.
//! 2. *Jump*: weights move on along the line from the last certificate's weights, by the factor that the losses
//!    showed to be best ([`proximal::jump`]).
//! 3. *Rounds*: each names a block of active features; every lane pushes a gradient and a curvature per feature, the
//!    server adds them in the order of the lanes and takes a proximal step per key (as [`proximal::proximal_step`]),
//!    workers pull the block's weights.
//!
//! # Map
//!
//! | file | one thing |
//! | ---- | --------- |
//! | [`mapping`] | a file, or an anonymous memory file, as bytes |
//! | [`libsvm`] | rows out of bytes, or the line and column of what is wrong |
//! | [`part`] | cutting a file into parts; one part as sparse columns |
//! | [`elementary`] | exp and ln with the same bits on every machine |
//! | [`margin`] | the fixed point in which margins are kept |
//! | [`logistic`] | loss, slope, curvature and entropy of one row |
//! | [`lane`] | all of it over the rows of a part |
//! | [`replica`] | a worker's copy of the weights and its lanes, moved together |
//! | [`proximal`] | what a server does to one key |
//! | [`plan`] | epochs: active blocks, order, delay, jump, stop |
//! | [`standing`] | where a job stands, for workers that come later |
//! | [`random`] | numbers that are the same in every version |
//! | [`certificate`] | scale of the dual point, objective, bound, gap |
//! | [`metrics`] | scores of a model on a file; area under the curve, accuracy |
//! | [`bundled`] | the Adult data inside the binary |
//! | [`mod@train`] | the distributed loop, over a cluster |
//! | [`mod@reference`] | the whole algorithm in one thread, the oracle of the distributed run |
//!
//! # What is repeatable
//!
//! A lane's contribution is a function of the file, the number of parts, the weights and the plan, to the last bit:
//! margins are exact integer sums ([`margin`]), sums over rows run in the order of the file, exp and ln are our own.
//! With delay 0 the weights therefore depend on the number of parts and not on the number of workers or servers.
#![deny(unsafe_code)]

pub mod bundled;
pub mod certificate;
pub mod elementary;
pub mod lane;
pub mod libsvm;
pub mod logistic;
pub mod mapping;
pub mod margin;
pub mod metrics;
pub mod part;
pub mod plan;
pub mod proximal;
pub mod random;
pub mod reference;
pub mod replica;
pub mod standing;
pub mod train;
