//! Small random problems of wild scales: nothing panics, nothing false is proved, nothing diverges.

use std::path::Path;

use proptest::prelude::*;
use rangefold_learn::lane::Lane;
use rangefold_learn::mapping::Mapping;
use rangefold_learn::part::{Part, survey};
use rangefold_learn::plan::Settings;
use rangefold_learn::reference::{Staleness, train};

/// A row: its class, and the decimal exponents and signs of the features that it has.
type Row = (bool, std::collections::BTreeMap<u8, (i8, bool)>);

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let pairs = proptest::collection::btree_map(1_u8..25, (-3_i8..4, any::<bool>()), 0..12);
    proptest::collection::vec((any::<bool>(), pairs), 1..40)
}

fn mapping_of(rows: &[Row]) -> Mapping {
    let mut text = String::new();
    for (positive, pairs) in rows {
        text += if *positive { "1" } else { "0" };
        for (index, (exponent, negative)) in pairs {
            text += &format!(" {index}:{}1.5e{exponent}", if *negative { "-" } else { "" });
        }
        text += "\r\n";
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("random-{}.svm", std::process::id()));
    std::fs::write(&path, text).unwrap();
    let mapping = Mapping::open(&path).unwrap();
    // A mapping outlives the name of its file.
    std::fs::remove_file(&path).unwrap();
    mapping
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn every_problem_is_solved_or_given_up_honestly(
        rows in rows(), lambda in 0.05_f64..3.0, delay in 0_usize..20, parts in 1_usize..6, segment_len in 1_usize..30
    ) {
        let mapping = mapping_of(&rows);
        let survey = survey(&mapping).unwrap();
        prop_assert_eq!(survey.rows, rows.len() as u64);
        let weights_len = survey.weights_len();
        let settings = Settings { lambda, gap: 0.01, delay, seed: 9, weights_len, segment_len, passes_max: 200.0 };
        prop_assert_eq!(settings.check(), Ok(()));
        let parts = Part::load_all(&mapping, survey.features, parts).unwrap();
        let outcome = train(parts.into_iter().map(Lane::new).collect(), &settings, Staleness::Worst).unwrap();

        let smallest = outcome.certificates.iter().map(|certificate| certificate.objective).fold(f64::INFINITY, f64::min);
        for certificate in &outcome.certificates {
            prop_assert!(certificate.bound <= smallest * (1.0 + 1e-9), "not a bound: {:?} above {}", certificate, smallest);
            prop_assert!(certificate.objective <= outcome.certificates[0].objective * (1.0 + 1e-9), "above F(0): {certificate:?}");
        }
        if delay == 0 {
            for pair in outcome.certificates.windows(2) {
                prop_assert!(pair[1].objective <= pair[0].objective * (1.0 + 1e-9), "it rose: {pair:?}");
            }
        }
        prop_assert!(outcome.progress.passes <= 200.0);
    }
}
