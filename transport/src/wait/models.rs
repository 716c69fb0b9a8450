//! Loom models of the waker. A lost wake-up is a deadlock, which loom reports.

use loom::sync::atomic::AtomicUsize;
use loom::thread;

use super::*;

/// Sleeps until `done`, as `Loop::run` does with a spinning time of 0.
fn sleep_until(waker: &Waker, done: impl Fn() -> bool) {
    while !done() {
        waker.arm();
        if !done() {
            waker.sleep(None);
        }
        waker.disarm();
    }
}

/// One ringer, one sleeper.
#[test]
fn loom_no_wake_up_is_lost() {
    loom::model(|| {
        let (waker, work) = (Waker::new(), Arc::new(AtomicUsize::new(0)));
        let ringer = {
            let (waker, work) = (waker.clone(), Arc::clone(&work));
            thread::spawn(move || {
                work.store(1, Ordering::Relaxed);
                waker.ring();
            })
        };
        sleep_until(&waker, || work.load(Ordering::Relaxed) == 1);
        ringer.join().expect("the ringer does not fail");
    });
}

/// Two ringers, whose rings may meet in the sleeper's every state.
#[test]
fn loom_no_wake_up_of_two_is_lost() {
    let mut builder = loom::model::Builder::new();
    // Unbounded it takes hours; every switch that a scheduler would have to make is still explored.
    builder.preemption_bound = Some(2);
    builder.check(|| {
        let (waker, work) = (Waker::new(), Arc::new(AtomicUsize::new(0)));
        let ringers = [1, 2].map(|piece| {
            let (waker, work) = (waker.clone(), Arc::clone(&work));
            thread::spawn(move || {
                work.fetch_add(piece, Ordering::Relaxed);
                waker.ring();
            })
        });
        sleep_until(&waker, || work.load(Ordering::Relaxed) == 3);
        for ringer in ringers {
            ringer.join().expect("no ringer fails");
        }
    });
}
