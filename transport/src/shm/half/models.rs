//! Loom models of two halves that sleep: a lost wake-up is a deadlock, which loom reports. What ships is checked; only the wire,
//! a socket in an epoll set, is played by a mutex and a condition.

use loom::model::Builder;
use loom::sync::{Condvar, Mutex};
use loom::thread;

use super::*;

/// One end of a wire: rings that came, rings that go.
struct Modelled {
    here: Arc<Rings>,
    there: Arc<Rings>,
}

struct Rings {
    count: Mutex<u32>,
    some: Condvar,
}

impl Wire for Modelled {
    fn ring(&self) {
        *self.there.count.lock().expect("no model poisons it") += 1;
        self.there.some.notify_one();
    }

    fn hear(&self) -> bool {
        *self.here.count.lock().expect("no model poisons it") = 0;
        false
    }
}

impl Modelled {
    /// Sleeps until there is a ring to be heard, as on a readable socket.
    fn sleep(&self) {
        let mut count = self.here.count.lock().expect("no model poisons it");
        while *count == 0 {
            count = self.here.some.wait(count).expect("no model poisons it");
        }
    }
}

fn pair(ring_bytes: usize) -> [Half<Modelled>; 2] {
    let mapping = Arc::new(Mapping::private(ring_bytes));
    let rings = || Arc::new(Rings { count: Mutex::new(0), some: Condvar::new() });
    let (left, right) = (rings(), rings());
    let half = |side, here: &Arc<Rings>, there: &Arc<Rings>| {
        let wire = Modelled { here: Arc::clone(here), there: Arc::clone(there) };
        Half::of(wire, Arc::clone(&mapping), side)
    };
    [half(0, &left, &right), half(1, &right, &left)]
}

/// The models are too large to be explored without a bound on the switches a scheduler would not have to make.
fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

/// What the endpoint does around a sleep. `wakes`: it looks by itself between two sleeps; otherwise it goes on asking,
/// as an endpoint does whose thread is about to sleep.
fn sleep_until(half: &mut Half<Modelled>, wakes: bool, mut done: impl FnMut(&mut Half<Modelled>) -> bool) {
    while !done(half) {
        half.ask();
        if done(half) {
            return;
        }
        half.wire.sleep();
        half.hear();
        if wakes {
            half.look();
        }
    }
}

/// Takes what there is; says how many bytes that was.
fn take(half: &mut Half<Modelled>) -> usize {
    let mut bytes = [0; 4];
    let mut taken = 0;
    while half.receive.look().expect("a correct peer") > 0 {
        taken += half.receive.read(&mut bytes);
    }
    half.tell();
    taken
}

fn put(half: &mut Half<Modelled>, byte: u8) -> bool {
    let count = half.send.write(&[byte]).expect("a correct peer");
    half.tell();
    count == 1
}

/// The receiver sleeps while two messages come, each told by itself.
#[test]
fn loom_shared_bell_loses_no_message() {
    for wakes in [false, true] {
        model(move || {
            let [mut left, mut right] = pair(2);
            let other = thread::spawn(move || {
                assert!(put(&mut left, 1));
                assert!(put(&mut left, 2));
                left
            });
            let mut taken = 0;
            sleep_until(&mut right, wakes, |right| {
                taken += take(right);
                taken == 2
            });
            drop(other.join().expect("the sender does not fail"));
        });
    }
}

/// The sender sleeps until there is room, the receiver until there are bytes; only one in a ring of bytes may ask for the other.
#[test]
fn loom_shared_bell_loses_no_room() {
    for wakes in [false, true] {
        model(move || {
            let [mut left, mut right] = pair(1);
            let other = thread::spawn(move || {
                for byte in [1, 2] {
                    sleep_until(&mut left, wakes, |left| put(left, byte));
                }
                left
            });
            let mut taken = 0;
            sleep_until(&mut right, wakes, |right| {
                taken += take(right);
                taken == 2
            });
            drop(other.join().expect("the sender does not fail"));
        });
    }
}

/// The same where the ring is not full at each release, so that not each release asks.
#[test]
fn loom_shared_bell_asks_once_in_a_ring() {
    model(|| {
        let [mut left, mut right] = pair(2);
        let other = thread::spawn(move || {
            for byte in [1, 2, 3] {
                sleep_until(&mut left, true, |left| put(left, byte));
            }
            left
        });
        let mut taken = 0;
        while taken < 3 {
            taken += take(&mut right);
            thread::yield_now();
        }
        drop(other.join().expect("the sender does not fail"));
    });
}
