//! What a harness may do to the network: break, cut off, slow down, crash.
//! Knows which messages survive a fault; when faults come is the harness's decision.

use crate::error::LostReason;
use crate::sim::HostId;
use crate::sim::network::{End, Happening, Network, World, lock, ordered};

impl Network {
    /// Breaks the link of this number: in each direction a random prefix of what is in flight will arrive, and the two
    /// ends notice at independent times, after that. Says whether there was such a link, alive.
    pub fn break_link(&self, number: u64) -> bool {
        let mut world = lock(&self.shared);
        let found = world.links.iter().rposition(|link| link.number == number && !link.broken);
        found.is_some_and(|link| world.break_link(link, LostReason::Broken, true))
    }

    /// Breaks all links between two hosts. Says how many.
    pub fn break_links(&self, left: HostId, right: HostId) -> usize {
        lock(&self.shared).break_between(left, right, LostReason::Broken, true)
    }

    /// The numbers of the links that live, with their hosts, oldest first.
    #[must_use]
    pub fn links(&self) -> Vec<(u64, HostId, HostId)> {
        let world = lock(&self.shared);
        let alive = world.links.iter().filter(|link| link.is_alive());
        alive.map(|link| (link.number, link.ends[0].host, link.ends[1].host)).collect()
    }

    /// From now on nothing arrives between the two hosts; it is held back until [`heal`](Self::heal), or until the
    /// links break as silent, if the configuration says so.
    pub fn partition(&self, left: HostId, right: HostId) {
        let mut world = lock(&self.shared);
        let now_ns = world.timeline.now_ns();
        world.partitions.entry(ordered(left, right)).or_insert(now_ns);
        world.watch_silence(left, right);
    }

    /// Ends a partition: what was held back starts again, in order.
    pub fn heal(&self, left: HostId, right: HostId) {
        let mut world = lock(&self.shared);
        if world.partitions.remove(&ordered(left, right)).is_none() {
            return;
        }
        for end in world.ends_between(left, right) {
            for _ in 0..std::mem::take(&mut world.terminal(end).held_count) {
                world.plan_delivery(end);
            }
        }
    }

    /// Whether two hosts are cut off from each other.
    #[must_use]
    pub fn is_partitioned(&self, left: HostId, right: HostId) -> bool {
        lock(&self.shared).partitions.contains_key(&ordered(left, right))
    }

    /// Multiplies all delays to and from a host; 1 is normal.
    pub fn slow(&self, host: HostId, factor: u32) {
        lock(&self.shared).slow.insert(host, u64::from(factor.max(1)));
    }

    /// A host stops at once: its endpoints report nothing any more and swallow what is posted, what was on its way to
    /// it is gone, of what it had sent a random prefix arrives, and the others notice later. Endpoints made after this
    /// are of its next life.
    pub fn crash(&self, host: HostId) {
        let mut world = lock(&self.shared);
        for station in world.stations.iter_mut().filter(|station| station.host == host) {
            station.die();
        }
        for link in 0..world.links.len() {
            for side in 0..2 {
                if world.links[link].ends[side].host == host {
                    world.vanish(End { link, side });
                }
            }
        }
    }
}

impl World {
    /// Breaks a link; `prefix`: a random part of what is in flight arrives, else nothing does.
    fn break_link(&mut self, link: usize, reason: LostReason, prefix: bool) -> bool {
        if !self.links[link].is_alive() {
            return false;
        }
        self.links[link].broken = true;
        self.counters.broken += 1;
        for side in 0..2 {
            let end = End { link, side };
            self.cut_flying(end, prefix);
            self.plan_notice(end.other(), reason);
        }
        self.note(6, End { link, side: 0 });
        true
    }

    fn break_between(&mut self, left: HostId, right: HostId, reason: LostReason, prefix: bool) -> usize {
        let links: Vec<usize> =
            self.ends_between(left, right).iter().step_by(2).map(|end| end.link).collect();
        links.into_iter().filter(|link| self.break_link(*link, reason, prefix)).count()
    }

    /// Keeps a random prefix of what flies from an end, or nothing of it.
    fn cut_flying(&mut self, from: End, prefix: bool) {
        let len = self.terminal(from).flying.len();
        let keep = if prefix { self.chance.cut(len) } else { 0 };
        let terminal = self.terminal(from);
        let gone = terminal.flying.split_off(keep);
        terminal.held_count = terminal.held_count.min(keep);
        self.drop_flying(gone);
    }

    /// The end will notice at a random time, but after what still flies to it.
    fn plan_notice(&mut self, end: End, reason: LostReason) {
        let notice_ns = self.timeline.now_ns() + self.chance.within(&self.config.notice_ns.clone());
        let sender = self.terminal(end.other());
        let last_ns = if sender.flying.is_empty() { 0 } else { sender.deliver_ns_last };
        self.timeline.plan(notice_ns.max(last_ns), Happening::Notice(end, reason));
    }

    /// The host of this end has crashed.
    fn vanish(&mut self, end: End) {
        self.discard_arrived(end, LostReason::Broken);
        let terminal = self.terminal(end);
        terminal.adopted = None;
        terminal.tokens.clear();
        terminal.completed.clear();
        terminal.lost_reported = true;
        let was_open = terminal.ended.replace(LostReason::Broken).is_none();
        if !std::mem::replace(&mut self.links[end.link].broken, true) {
            self.counters.broken += u64::from(was_open);
            self.cut_flying(end, true);
            self.plan_notice(end.other(), LostReason::Broken);
        }
        self.cut_flying(end.other(), false);
        self.note(7, end);
    }

    /// Plans the end of patience for a partition, if there is one and patience ends.
    pub(super) fn watch_silence(&mut self, left: HostId, right: HostId) {
        let (Some(since_ns), Some(patience_ns)) =
            (self.partitions.get(&ordered(left, right)).copied(), self.config.silent_after_ns)
        else {
            return;
        };
        let at_ns = self.timeline.now_ns() + patience_ns;
        self.timeline.plan(at_ns, Happening::Silence(left, right, since_ns));
    }

    pub(super) fn silence(&mut self, left: HostId, right: HostId, since_ns: u64) {
        if self.partitions.get(&ordered(left, right)) == Some(&since_ns) {
            self.break_between(left, right, LostReason::Silent, false);
        }
    }

    /// Both ends of every link between two hosts, in the order of the links.
    fn ends_between(&self, left: HostId, right: HostId) -> Vec<End> {
        let between = |link: &usize| {
            let [first, second] = &self.links[*link].ends;
            ordered(first.host, second.host) == ordered(left, right)
        };
        (0..self.links.len()).filter(between).flat_map(|link| [0, 1].map(|side| End { link, side })).collect()
    }
}
