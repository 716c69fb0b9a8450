//! Loom models of the count and the return stack. A mapping's leak or a use after its end is found through the
//! region's `Arc`, a race on the bytes through the cell that stands for them in `Chunk`.

use loom::thread;

use super::*;

/// Two readers drop their slices while the owner asks again and again: it gets the chunk after both.
#[test]
fn loom_returned_chunk_is_taken_again() {
    loom::model(|| {
        let mut arena = Arena::new(CLASS_BYTES_MIN);
        let mut slice = arena.take(1).expect("one chunk");
        slice.as_mut_bytes()[0] = 1;
        let slice = slice.freeze();
        let readers =
            [slice.clone(), slice].map(|slice| thread::spawn(move || assert_eq!(slice.as_bytes()[0], 1)));
        // Before they are joined, which would order everything.
        let mut slice = loop {
            match arena.take(1) {
                Some(slice) => break slice,
                None => thread::yield_now(),
            }
        };
        slice.as_mut_bytes()[0] = 2;
        for reader in readers {
            reader.join().expect("no reader fails");
        }
    });
}

/// Two threads return chunks of one class while the owner drains: none is lost, none comes twice.
#[test]
fn loom_returns_from_two_threads_are_all_collected() {
    loom::model(|| {
        let mut arena = Arena::new(3 * CLASS_BYTES_MIN);
        let slices = [arena.take(1), arena.take(1)].map(|slice| slice.expect("three chunks"));
        let third = arena.take(1).expect("three chunks");
        let droppers = slices.map(|slice| thread::spawn(move || drop(slice)));
        drop(third);
        arena.collect();
        for dropper in droppers {
            dropper.join().expect("no dropper fails");
        }
        arena.collect();
        assert_eq!(arena.used_bytes(), 0);
        let again = [arena.take(1), arena.take(1), arena.take(1)];
        assert!(again.iter().all(Option::is_some) && arena.take(1).is_none());
    });
}

/// The arena ends while two threads hold slices: whoever is last frees everything, once.
#[test]
fn loom_arena_ends_before_its_slices() {
    loom::model(|| {
        let mut arena = Arena::new(2 * CLASS_BYTES_MIN);
        let slices = [arena.take(1), arena.take(1)].map(|slice| slice.expect("two chunks"));
        let droppers = slices.map(|slice| {
            thread::spawn(move || {
                let _ = slice.as_bytes();
            })
        });
        drop(arena);
        for dropper in droppers {
            dropper.join().expect("no dropper fails");
        }
    });
}

/// The last slice but one is dropped elsewhere while this thread asks for the memory back.
#[test]
fn loom_last_slice_may_be_written() {
    loom::model(|| {
        let mut arena = Arena::new(CLASS_BYTES_MIN);
        let slice = arena.take(1).expect("one chunk").freeze();
        let clone = slice.clone();
        let reader = thread::spawn(move || {
            let _ = clone.as_bytes();
        });
        if let Ok(mut slice) = slice.try_into_mut() {
            slice.as_mut_bytes()[0] = 1;
        }
        reader.join().expect("the reader does not fail");
    });
}
