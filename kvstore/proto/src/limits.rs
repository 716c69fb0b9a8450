//! Every capacity of the cores, with its default.
//! Knows numbers only. Fixed when a core is made; `test_min` makes rare branches common.
//! Source: protocol.md §13.

/// Capacities of a client core or a server core. All are bounds that hold at every moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of values in one frame. 256 KiB, so that a small frame waits behind at most one of them (B8).
    pub frame_bytes_max: u32,
    /// Bytes of push payload that a server holds for one connection: what it grants (B1).
    pub push_bytes_per_link: u64,
    /// Pulls of one connection that a server holds, parked ones included: what it grants (T6, B8).
    pub pulls_per_link: u16,
    /// Answers to pushes that wait for one connection to read them; one for each lane and segment it named.
    pub answers_per_link: u32,
    /// Operations of one connection that are posted and not completed. Bounds the send queue.
    pub sends_per_link: u16,
    /// Replies of one shard that are gathered and not yet sent (B5).
    pub replies_per_shard: u16,
    /// Of these, one connection's at most: what a peer that does not read can hold.
    pub replies_per_link: u16,
    /// Bytes of one connection's, unless one alone is more.
    pub reply_bytes_per_link: u32,
    /// Rounds of an aggregated table that may be open at once; more than tau (T10).
    pub rounds_open_max: u32,
    /// Open tasks of a client (B6).
    pub tasks_max: u32,
    /// Bytes of pushes that a client keeps until they are acknowledged (B6).
    pub unacknowledged_bytes_max: u64,
    /// From here on a client asks what has arrived before it sends again (P7).
    pub resume_bytes_min: u64,
    /// How long a client waits after `Busy`, in nanoseconds, or after a failed dial, where it doubles up to 64 times that.
    pub retry_ns: u64,
    /// Lanes of one job.
    pub lanes_max: u32,
}

impl Limits {
    /// The defaults, each with its reason:
    ///
    /// - `frame_bytes_max` 256 KiB: large enough that the work for a frame does not show in a stream, and a small frame
    ///   waits behind no more than that.
    /// - `push_bytes_per_link` 16 MiB: 64 frames, so that a stream does not wait for credit and a client's aggregated
    ///   round has room; a thousand clients may make a shard hold 16 GiB.
    /// - `pulls_per_link` 64: as many frames of replies as of pushes.
    /// - `answers_per_link` 16384: four segments for each of `lanes_max` lanes; a peer that is owed more invents them.
    /// - `sends_per_link` 128: as many frames as one vectored send takes.
    /// - `replies_per_shard` 256: at most 64 MiB of values gathered.
    /// - `replies_per_link` 32: eight peers that do not read hold up the others.
    /// - `reply_bytes_per_link` 1 MiB: four frames keep a connection busy, and what is gathered for them is sent while it lies in
    ///   the cache: with 8 MiB a stream of pulls over TCP was 14 to 23 % slower (one run each).
    /// - `rounds_open_max` 64: delays of up to 63, and payloads of no more rounds than that to hold.
    /// - `tasks_max` 4096: a program that never waits is held up before its tasks cost memory.
    /// - `unacknowledged_bytes_max` 256 MiB: what sixteen connections are granted.
    /// - `resume_bytes_min` 64 KiB: less is sent again in about the time that asking takes.
    /// - `retry_ns` 2 ms: some tens of round trips, so that trying again is no load, and far below any deadline.
    /// - `lanes_max` 4096: a view of them, 48 KiB, fits a control frame.
    #[must_use]
    pub const fn standard() -> Self {
        Self {
            frame_bytes_max: 256 << 10,
            push_bytes_per_link: 16 << 20,
            pulls_per_link: 64,
            answers_per_link: 1 << 14,
            sends_per_link: 128,
            replies_per_shard: 256,
            replies_per_link: 32,
            reply_bytes_per_link: 1 << 20,
            rounds_open_max: 64,
            tasks_max: 4096,
            unacknowledged_bytes_max: 256 << 20,
            resume_bytes_min: 64 << 10,
            retry_ns: 2_000_000,
            lanes_max: 4096,
        }
    }

    /// Everything as small as it can be: what tests run with, so that full queues and cut frames are common.
    #[must_use]
    pub const fn test_min() -> Self {
        Self {
            frame_bytes_max: 64,
            push_bytes_per_link: 256,
            pulls_per_link: 3,
            answers_per_link: 128,
            sends_per_link: 3,
            replies_per_shard: 2,
            replies_per_link: 1,
            reply_bytes_per_link: 64,
            rounds_open_max: 3,
            tasks_max: 32,
            unacknowledged_bytes_max: 2048,
            resume_bytes_min: 128,
            retry_ns: 1_000_000,
            lanes_max: 16,
        }
    }
}
