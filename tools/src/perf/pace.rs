//! When the next message is due, and when there is none any more: closed and open loop.
//! Knows the clock's numbers; sends nothing. Asked by `raw/sender.rs` and `store.rs` before each message.
//! Source: open loop with intended times, as in G. Tene's wrk2, against coordinated omission.
//!
//! **Closed loop**: a message is due whenever fewer than the depth are under way. **Open loop**: message i is due at
//! start + i periods, whatever became of those before it; its latency counts from then, also when it had to wait for the
//! depth. What waits is not stored: due times are computed.

/// When a run ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Limit {
    /// After so many messages of each thread.
    Messages(u64),
    /// After so many nanoseconds no more is sent.
    Time(u64),
}

/// How one thread sends.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Pace {
    /// When it ends.
    pub(super) limit: Limit,
    /// Open loop: nanoseconds between two messages of this thread.
    pub(super) period_ns: Option<f64>,
    /// Open loop: how long after the start this thread's first is due, so that threads take turns.
    pub(super) offset_ns: f64,
}

impl Pace {
    /// As fast as the depth allows.
    pub(super) fn closed(limit: Limit) -> Self {
        Self { limit, period_ns: None, offset_ns: 0.0 }
    }

    /// Thread `index` of `threads` that together send `rate` messages a second.
    pub(super) fn open(limit: Limit, rate: f64, index: usize, threads: usize) -> Self {
        let between_ns = 1e9 / rate;
        Self { limit, period_ns: Some(between_ns * threads as f64), offset_ns: between_ns * index as f64 }
    }
}

/// What is to be done now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// Send; the latency counts from this time.
    Now(u64),
    /// Nothing is due before.
    At(u64),
    /// Nothing more.
    Never,
}

/// A run of one thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    pace: Pace,
    start_ns: u64,
    issued: u64,
}

impl Schedule {
    pub(super) fn new(pace: Pace, start_ns: u64) -> Self {
        Self { pace, start_ns, issued: 0 }
    }

    /// What to do at `now_ns`.
    pub(super) fn next(&self, now_ns: u64) -> Next {
        let end_ns = match self.pace.limit {
            Limit::Messages(count) if self.issued >= count => return Next::Never,
            Limit::Messages(_) => u64::MAX,
            Limit::Time(ns) => self.start_ns.saturating_add(ns),
        };
        // What was due before the end and was not sent by then stays unsent: see `unsent`.
        if now_ns >= end_ns {
            return Next::Never;
        }
        match self.pace.period_ns {
            None => Next::Now(now_ns),
            Some(period_ns) => match self.due_ns(self.issued, period_ns) {
                due_ns if due_ns >= end_ns => Next::Never,
                due_ns if due_ns > now_ns => Next::At(due_ns),
                due_ns => Next::Now(due_ns),
            },
        }
    }

    /// A message was sent.
    pub(super) fn issued(&mut self) {
        self.issued += 1;
    }

    /// Messages of an open loop that were due before `now_ns` and were not sent: more was offered than was taken.
    pub(super) fn unsent(&self, now_ns: u64) -> u64 {
        let Some(period_ns) = self.pace.period_ns else { return 0 };
        let until_ns = match self.pace.limit {
            Limit::Messages(_) => return 0,
            Limit::Time(ns) => self.start_ns.saturating_add(ns).min(now_ns),
        };
        let due = (until_ns.saturating_sub(self.start_ns) as f64 - self.pace.offset_ns) / period_ns;
        whole(due.ceil()).saturating_sub(self.issued)
    }

    fn due_ns(&self, index: u64, period_ns: f64) -> u64 {
        self.start_ns.saturating_add(whole(self.pace.offset_ns + index as f64 * period_ns))
    }
}

/// Rounded down, nothing below 0; what is beyond all numbers is the last of them.
#[allow(
    clippy::cast_possible_truncation,
    reason = "a conversion of floats saturates, which is what is wanted"
)]
pub(super) fn whole(number: f64) -> u64 {
    number as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_loop_counts_from_now_and_ends() {
        let mut schedule = Schedule::new(Pace::closed(Limit::Messages(2)), 100);
        assert_eq!(schedule.next(130), Next::Now(130));
        schedule.issued();
        schedule.issued();
        assert_eq!(schedule.next(131), Next::Never);
        let timed = Schedule::new(Pace::closed(Limit::Time(50)), 100);
        assert_eq!((timed.next(149), timed.next(150)), (Next::Now(149), Next::Never));
        assert_eq!(timed.unsent(1_000), 0, "what is not offered is not missed");
    }

    #[test]
    fn an_open_loop_keeps_its_times_whatever_happens() {
        // 1 M messages a second over two threads: one of each every 2 us, half a period apart.
        let pace = |index| Pace::open(Limit::Messages(1 << 40), 1e6, index, 2);
        let (mut first, second) = (Schedule::new(pace(0), 1_000), Schedule::new(pace(1), 1_000));
        assert_eq!((first.next(1_000), second.next(1_000)), (Next::Now(1_000), Next::At(2_000)));
        first.issued();
        assert_eq!(first.next(1_001), Next::At(3_000));
        // A stall of a millisecond: all 500 that were due meanwhile count from their own times.
        for index in 1..=500 {
            assert_eq!(first.next(1_001_000), Next::Now(1_000 + index * 2_000));
            first.issued();
        }
        assert_eq!(first.next(1_001_000), Next::At(1_003_000));
        assert_eq!(first.next(2_000_000_000), Next::Now(1_003_000));
    }

    #[test]
    fn times_do_not_drift_over_a_billion_messages() {
        let mut schedule = Schedule::new(Pace::open(Limit::Time(u64::MAX), 3e6, 0, 1), 0);
        schedule.issued = 3_000_000_000;
        assert_eq!(schedule.next(0), Next::At(1_000_000_000_000));
    }

    #[test]
    fn what_was_offered_and_not_taken_is_counted() {
        // 1,000 a second for a second.
        let mut schedule = Schedule::new(Pace::open(Limit::Time(1_000_000_000), 1e3, 0, 1), 0);
        for _ in 0..400 {
            assert!(matches!(schedule.next(999_999_999), Next::Now(_)));
            schedule.issued();
        }
        assert_eq!(schedule.next(1_000_000_000), Next::Never);
        assert_eq!(schedule.unsent(1_200_000_000), 600);
        assert_eq!(schedule.unsent(500_000_000), 100, "an interrupt: what was due by then");
        schedule.issued = 1_000;
        assert_eq!(schedule.unsent(2_000_000_000), 0);
    }
}
