//! The README's main job, and whether its result is the right one.
//! Knows the optimum and how far from it a result may be; nothing of how it is reached. Called as a stage.

use crate::stage::{Outcome, Stage};

/// The least objective on the bundled data at lambda 10, certified to 1.5e-6 by an independent solver (celer).
const OPTIMUM: f64 = 13_545.570_474_2;
/// Nothing is below it but what the certificate leaves open.
const BELOW: f64 = 1.0 - 1e-6;
/// How much above the optimum the objective may be.
const ABOVE: f64 = 1.001;
/// The certified gap that the job promises by default.
const GAP_MAX: f64 = 0.01;
/// The optimum's area under the curve on the test rows, and how far from it a result may be.
const AUC: (f64, f64) = (0.886_52, 0.002);

pub(crate) fn main_job() -> Outcome {
    let job = Stage::cargo(&["run", "--release", "--locked", "--", "train", "lr", "--json"]).output(false);
    let output = match job {
        Ok(output) => output,
        Err(why) => return Outcome::Failed(why),
    };
    let json = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Outcome::Failed(format!("train lr ended with {}", output.status));
    }
    match judge(&json) {
        Ok(line) => {
            println!("{line}");
            Outcome::Passed
        }
        Err(why) => Outcome::Failed(why),
    }
}

fn judge(json: &str) -> Result<String, String> {
    let number = |name: &str| number(json, name).ok_or_else(|| format!("no number `{name}` in {json}"));
    let (objective, gap, auc) = (number("objective")?, number("gap")?, number("test_auc")?);
    let line =
        format!("objective {objective:.4}, gap {gap:.5}, test AUC {auc:.5}, {:.2} s", number("seconds")?);
    if !(0.0..=GAP_MAX).contains(&gap) {
        return Err(format!("{line}: the gap is not within 0 and {GAP_MAX}"));
    }
    let (low, high) = (OPTIMUM * BELOW, OPTIMUM * ABOVE);
    if !(low..=high).contains(&objective) {
        return Err(format!("{line}: the objective is not within {low:.4} and {high:.4}"));
    }
    if (auc - AUC.0).abs() > AUC.1 {
        return Err(format!("{line}: the AUC is not within {} of {}", AUC.1, AUC.0));
    }
    Ok(line)
}

/// The first number of this name.
fn number(json: &str, name: &str) -> Option<f64> {
    let (_, after) = json.split_once(&format!("\"{name}\":"))?;
    let text = after.trim_start();
    let end = text.find([',', '}', '\n']).unwrap_or(text.len());
    text[..end].trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(objective: f64, gap: f64, auc: f64) -> String {
        format!("{{\n \"gap\": {gap},\n \"objective\": {objective}, \"seconds\": 1.5, \"test_auc\": {auc}}}")
    }

    #[test]
    fn a_result_near_the_optimum_passes_and_others_do_not() {
        assert!(judge(&result(13546.0, 0.009, 0.8861)).is_ok());
        for (objective, gap, auc) in [
            (13560.0, 0.009, 0.8861),
            (13400.0, 0.009, 0.8861),
            (13500.0, 0.009, 0.8861),
            (13546.0, 0.011, 0.8861),
            (13546.0, -0.1, 0.8861),
            (13546.0, 0.009, 0.88),
        ] {
            assert!(judge(&result(objective, gap, auc)).is_err(), "{objective} {gap} {auc}");
        }
        assert!(judge("{\"objective\": null}").is_err());
    }
}
