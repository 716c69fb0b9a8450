//! Knows: where a job stands, as a row of numbers that the servers keep for workers that come later.
//! Knows not: tables, messages, who reads it.
//! Called by: [`mod@crate::train`], once an epoch, and once by each worker that begins.
//! Paper: OSDI'14 §4.6 (a worker joins in the middle).
//!
//! | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 |
//! | - | - | - | - | - | - | - | - | - |
//! | epochs | rounds | passes | bound | objective expected | caution | calm epochs | jump factor | round of the jump |

use rangefold_proto::Round;

use crate::plan::{CAUTION_MAX, Progress};

/// What follows the last certificate whose decision is kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// The past, as [`crate::plan::decide`] left it.
    pub progress: Progress,
    /// The factor of the jump that opens the epoch.
    pub jump_factor: f64,
    /// The job's round in which the jump is made.
    pub jump_round: Round,
}

impl Standing {
    /// Numbers in a row.
    pub const WIDTH: usize = 9;

    /// As it is kept.
    #[must_use]
    pub fn to_row(self) -> [f64; Self::WIDTH] {
        let Progress { epochs, rounds, passes, bound, objective_expected, caution, calm_epochs } =
            self.progress;
        [
            epochs as f64,
            rounds as f64,
            passes,
            bound,
            objective_expected,
            f64::from(caution),
            f64::from(calm_epochs),
            self.jump_factor,
            f64::from(self.jump_round),
        ]
    }

    /// Reads what [`Self::to_row`] wrote; `None` where nobody has written yet, or something else has.
    #[must_use]
    pub fn from_row(row: &[f64]) -> Option<Self> {
        let &[
            epochs,
            rounds,
            passes,
            bound,
            objective_expected,
            caution,
            calm_epochs,
            jump_factor,
            jump_round,
        ] = row
        else {
            return None;
        };
        let progress = Progress {
            epochs: whole(epochs)?,
            rounds: whole(rounds)?,
            passes,
            bound,
            objective_expected,
            caution: u32::try_from(whole(caution)?).ok()?,
            calm_epochs: u32::try_from(whole(calm_epochs)?).ok()?,
        };
        let jump_round = Round::try_from(whole(jump_round)?).ok()?;
        (progress.epochs > 0 && progress.caution <= CAUTION_MAX).then_some(Self {
            progress,
            jump_factor,
            jump_round,
        })
    }
}

/// A count that was written as a double.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "whole, not negative and below 2^53, as checked"
)]
fn whole(value: f64) -> Option<u64> {
    (value >= 0.0 && value < (1_u64 << 53) as f64 && value.fract() == 0.0).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let mut progress = Progress::new();
        let first = Standing { progress, jump_factor: 0.0, jump_round: 3 };
        // Expect: before the first plan there is no standing, and an empty table is no standing either.
        assert_eq!(Standing::from_row(&first.to_row()), None);
        assert_eq!(Standing::from_row(&[0.0; Standing::WIDTH]), None);
        (progress.epochs, progress.rounds, progress.passes, progress.caution) = (7, 1234, 0.1 + 0.2, 3);
        let standing = Standing { progress, jump_factor: 0.25, jump_round: Round::MAX };
        assert_eq!(Standing::from_row(&standing.to_row()), Some(standing));
    }

    #[test]
    fn what_is_no_standing_is_none() {
        let good =
            Standing { progress: Progress { epochs: 1, ..Progress::new() }, jump_factor: 1.0, jump_round: 3 };
        for (place, value) in [(0, 0.5), (0, -1.0), (1, f64::NAN), (5, 21.0), (8, 1e10), (8, f64::INFINITY)] {
            let mut row = good.to_row();
            row[place] = value;
            assert_eq!(Standing::from_row(&row), None, "{value} at {place}");
        }
        assert_eq!(Standing::from_row(&[1.0; 8]), None);
    }
}
