//! Which processor a thread runs on, when its user or `launch` gave the process processors of its own.
//! Knows the variable and the call; the choice is made by whoever starts processes. Called when shard threads start.
//! Several processes of a host must never all pin to core 0, so who was given no processors is not pinned.

/// The environment variable with the processors of this process, as `0,1,4`.
pub const VARIABLE: &str = "RANGEFOLD_CORES";

/// A list that is no list of processors.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "`{0}` in {VARIABLE} is no processor number; expected numbers below 1024 that this process may use, like 0,1,4"
)]
pub struct NoSuchCore(String);

/// The processors of `text`; each must be one that this process may use.
///
/// # Errors
/// [`NoSuchCore`], with the first that is not.
pub fn parse(text: &str) -> Result<Vec<usize>, NoSuchCore> {
    let allowed = allowed();
    let core = |word: &str| {
        let number = word.trim().parse().ok().filter(|number| allowed.contains(number));
        number.ok_or_else(|| NoSuchCore(word.trim().into()))
    };
    text.split(',').filter(|word| !word.trim().is_empty()).map(core).collect()
}

/// The processors that this process may use, below 1024: a higher number would abort the process inside the library that
/// sets it.
#[must_use]
pub fn allowed() -> Vec<usize> {
    core_affinity::get_core_ids()
        .unwrap_or_default()
        .into_iter()
        .map(|core| core.id)
        .filter(|&id| id < 1024)
        .collect()
}

/// Binds the calling thread. Says whether the system did it.
pub fn pin(core: usize) -> bool {
    core < 1024 && core_affinity::set_for_current(core_affinity::CoreId { id: core })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_processors_of_this_process_are_taken() {
        let first = allowed()[0];
        assert_eq!(parse(&format!(" {first}, {first} ,")), Ok(vec![first, first]));
        for wrong in ["x", "-1", "99999", "1024"] {
            assert_eq!(parse(wrong), Err(NoSuchCore(wrong.into())));
        }
        assert!(!pin(1024) && !pin(usize::MAX));
    }
}
