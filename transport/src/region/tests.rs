//! What slices promise: exclusive while written, shared while read, returned when the last is gone.

use super::*;

#[test]
fn a_region_is_zeroed_and_page_aligned() {
    let (region, slice) = Region::anonymous(10_000).expect("little memory");
    assert_eq!((region.len(), region.pages()), (10_000, Pages::Base));
    assert!(slice.as_bytes().iter().all(|byte| *byte == 0));
    assert_eq!(slice.as_bytes().as_ptr().addr() % 4096, 0);
}

#[test]
#[cfg_attr(miri, ignore = "a system call")]
fn a_large_region_asks_for_huge_pages() {
    let (region, _slice) = Region::anonymous(HUGE_PAGE_BYTES).expect("little memory");
    // A kernel without huge pages refuses the advice; then the region says so.
    assert!(matches!(region.pages(), Pages::HugeAdvised | Pages::Base));
}

#[test]
fn pieces_are_exclusive_and_meet_at_their_border() {
    let (_, mut front) = Region::anonymous(100).expect("little memory");
    let mut back = front.split_off(40);
    let mut nothing = back.split_off(60);
    assert_eq!((front.len(), back.len(), nothing.len()), (40, 60, 0));
    front.as_mut_bytes().fill(1);
    back.as_mut_bytes().fill(2);
    nothing.as_mut_bytes().fill(3);
    let (front, back) = (front.freeze(), back.freeze());
    assert!(front.as_bytes().iter().all(|byte| *byte == 1));
    assert!(back.as_bytes().iter().all(|byte| *byte == 2));
    assert_eq!(front.as_bytes().as_ptr_range().end, back.as_bytes().as_ptr());
}

#[test]
fn slices_outlive_the_handle() {
    let (region, mut slice) = Region::anonymous(64).expect("little memory");
    drop(region);
    slice.as_mut_bytes()[63] = 7;
    let slice = slice.freeze();
    let cut = slice.cut(60..64);
    drop(slice);
    assert_eq!(cut.as_bytes(), [0, 0, 0, 7]);
    assert_eq!(cut.region().len(), 64);
}

#[test]
fn only_the_last_slice_may_be_written_again() {
    let (_region, slice) = Region::anonymous(64).expect("little memory");
    let slice = slice.freeze();
    let cut = slice.cut(0..8);
    let slice = slice.try_into_mut().expect_err("a cut is alive");
    drop(cut);
    let mut slice = slice.try_into_mut().expect("the only one; the handle does not count");
    slice.as_mut_bytes().fill(9);
    slice.truncate(3);
    slice.truncate(10);
    assert_eq!(slice.as_bytes(), [9; 3]);
}

#[test]
#[should_panic(expected = "cut 10..65 of 64 bytes")]
fn a_cut_beyond_the_end_panics() {
    let (_region, slice) = Region::anonymous(64).expect("little memory");
    let _ = slice.freeze().cut(10..65);
}

#[test]
#[should_panic(expected = "split at 65 of 64 bytes")]
fn a_split_beyond_the_end_panics() {
    let (_region, mut slice) = Region::anonymous(64).expect("little memory");
    let _ = slice.split_off(65);
}

#[test]
#[cfg_attr(miri, ignore = "asks the system for more than there is")]
fn a_refusal_says_what_was_asked_for() {
    let error = Region::anonymous(1 << 60).expect_err("an exbibyte");
    assert!(error.to_string().contains("1152921504606846976 bytes"), "{error}");
}

#[test]
fn the_last_drop_may_be_on_any_thread() {
    let (_, mut slice) = Region::anonymous(4096).expect("little memory");
    slice.as_mut_bytes().fill(5);
    let slice = slice.freeze();
    std::thread::scope(|scope| {
        for part in 0..4 {
            let cut = slice.cut(part * 1024..(part + 1) * 1024);
            scope.spawn(move || assert!(cut.as_bytes().iter().all(|byte| *byte == 5)));
        }
        drop(slice);
    });
}
