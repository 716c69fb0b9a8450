//! Real processes on loopback: `launch` with a scheduler, servers and workers; killed, stopped, interrupted.

mod denied;
mod harness;
mod interrupts;
mod jobs;
mod lost;
mod network;
mod perf;
mod secrets;
mod stopped;
mod usage;
