//! Moves bytes between the nodes of a cluster. Knows peers, messages and regions; never keys, clocks or tasks.
//!
//! **One endpoint per thread.** An [`Endpoint`] is owned by one thread; nothing in it is shared.
//!
//! **Batch first.** [`Endpoint::post`] takes many operations, [`Endpoint::poll`] reports many events.
//!
//! **Nothing blocks.** A peer without room is [`Full`](error::Full), a value. The one place that sleeps is [`wait`].
//!
//! **Every token completes exactly once**, flushed ones included, and a lost peer is an event with a reason.
//!
//! **Memory is explicit.** Bodies are [`Slice`]s of [`Region`]s, lent while in flight, returned by the completion.
//!
//! **A message is a head and a body.** The head is 64 bytes and up to 256 of extensions, opaque here; the body is a
//! list of slices. Messages to one peer keep their order.
//!
//! # Promises
//!
//! What any backend must do, each with the function that holds it to that. A test compares this list with the functions.
//!
//! Operations:
//!
//! - Messages to one peer arrive in the order of posting, each once. [`conformance::keeps_order`]
//! - Every token completes exactly once, in the order of posting. [`conformance::completes_every_token_once`]
//! - What is posted to a lost peer completes as flushed. [`conformance::completes_what_was_posted_to_the_lost`]
//! - A lost peer's operations complete before its loss is reported. [`conformance::flushes_before_lost`]
//! - A queue takes as many operations as it says and one more after each completion. [`conformance::full_ends_with_a_completion`]
//! - A peer without room holds up nobody else. [`conformance::a_full_peer_holds_up_nobody`]
//! - A poll reports at most what there is room for, and the rest later. [`conformance::reports_no_more_than_there_is_room_for`]
//!
//! Peers:
//!
//! - A close is one loss on each side, that side's last event, with who closed. [`conformance::closing_loses_both_sides_once`]
//! - What was sent before a close arrives before the loss. [`conformance::delivers_what_was_sent_before_the_close`]
//! - Dropping an endpoint closes its links. [`conformance::dropping_an_endpoint_closes`]
//! - Dropping a link that nobody has adopted closes it. [`conformance::dropping_a_link_closes`]
//! - A link that finds no room is closed. [`conformance::closes_what_it_cannot_adopt`]
//! - The name of a lost peer is not given again. [`conformance::names_no_two_peers_alike`]
//!
//! Heads and bodies:
//!
//! - A head arrives as it was, whatever its legal length. [`conformance::carries_heads_of_every_length`]
//! - A message may have no body. [`conformance::carries_empty_bodies`]
//! - Of a body of many slices the concatenation arrives. [`conformance::concatenates_slices`]
//! - Memory is the sender's again when the receiver has dropped the body and the token is complete.
//!   [`conformance::returns_the_memory_of_bodies`]
//! - Who sends a longer body than the receiver takes is cut off, and nobody else. [`conformance::cuts_off_who_sends_too_much`]
//!
//! Bodies that are placed:
//!
//! - Bodies from the link's threshold on are announced, shorter ones arrive. [`conformance::announces_from_the_threshold`]
//! - A body lands in the memory it was given, and later messages wait for that. [`conformance::places_where_it_was_told`]
//! - While a body waits, this side's own operations go on. [`conformance::completes_while_a_body_waits`]
//! - A body that nobody wants is discarded, and what follows arrives. [`conformance::discards_what_is_not_wanted`]
//! - A place for a lost peer's body does nothing and keeps nothing. [`conformance::ignores_places_of_the_lost`]
//! - Memory given to a body comes back once, before the loss of its sender. [`conformance::gives_back_the_place_of_the_lost`]
//! - A destination of another length is refused by a panic. [`conformance::refuses_a_place_of_another_length`]
//!
//! Sleep (in real time; the simulator has none):
//!
//! - Messages, completions and a loss wake who sleeps on the endpoint. [`conformance::wakes_a_sleeper`]
//! - So does a ring from any thread. [`conformance::rings_a_sleeper`]
//! - A ring wakes once. [`conformance::sleeps_again_after_a_ring`]
//! - An adoption between `arm` and the sleep is not forgotten, [`conformance::sees_to_a_late_adoption`]
//! - nor is a place, [`conformance::sees_to_a_late_place`]
//! - nor is a close. [`conformance::sees_to_a_late_close`]
//!
//! No function shows that nothing blocks and that nothing allocates for each message: by their construction, and by what
//! `bench` counts.
#![doc = include_str!("../DESIGN.md")]
#![deny(unsafe_code)]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64", target_endian = "little")))]
compile_error!(
    "Rangefold runs on 64-bit little-endian Linux (x86-64, aarch64): it is built on io_uring and futexes"
);

pub mod arena;
pub mod auto;
pub mod bootstrap;
pub mod caps;
pub mod conformance;
pub mod endpoint;
pub mod error;
pub mod link;
pub mod memory;
mod primitive;
pub mod region;
pub mod shm;
pub mod sim;
pub mod socket;
pub mod stream;
pub mod uring;
pub mod wait;

pub use arena::Arena;
pub use caps::Capabilities;
pub use endpoint::{
    Arrival, Batch, Body, EXTENSION_BYTES_MAX, Endpoint, Event, Events, HEAD_BYTES_MAX, HEADER_BYTES, Head,
    Operation, Peer, Token,
};
pub use error::{AdoptError, AttachError, Full, LostReason, RegionError, Violation};
pub use link::{Link, Route};
pub use region::{Region, Slice, SliceMut};
pub use stream::Framing;
pub use wait::{Armed, Shell, Turn, Waker};
