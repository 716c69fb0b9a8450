//! What must be said beside every figure: when, on what, by which code, under what load.
//! Knows where Linux tells; what it does not tell is left out of the head, never a failure.

use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::cores;

/// The head of the output, one line a fact.
pub(crate) fn head(length: Duration, repeats: usize) -> String {
    let facts = [
        ("date", Some(date(SystemTime::now()))),
        ("commit", commit()),
        ("kernel", read("/proc/sys/kernel/osrelease").map(|release| format!("Linux {release}"))),
        ("processor", processor()),
        ("cores", Some(cores::describe())),
        ("length", Some(format!("{} ms a measurement; repeats: {repeats}", length.as_millis()))),
        ("load", load().map(|load| format!("{load} at the start"))),
    ];
    let told = facts.into_iter().filter_map(|(name, fact)| Some(format!("{name:<10}{}\n", fact?)));
    told.collect()
}

/// Runnable threads over the last 1, 5 and 15 minutes.
pub(crate) fn load() -> Option<String> {
    let all = read("/proc/loadavg")?;
    Some(all.split(' ').take(3).collect::<Vec<_>>().join(" "))
}

fn read(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

fn processor() -> Option<String> {
    let all = read("/proc/cpuinfo")?;
    let of = |name: &str| {
        all.lines().find(|line| line.starts_with(name))?.split_once(": ").map(|(_, value)| value)
    };
    let guest = of("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"));
    Some(format!("{}{}", of("model name")?, if guest { ", virtual machine" } else { "" }))
}

/// The commit of the sources, and whether they were changed since.
fn commit() -> Option<String> {
    let arguments = ["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--exclude=*"];
    let told = Command::new("git").args(arguments).stderr(std::process::Stdio::null()).output().ok()?;
    let name = String::from_utf8(told.stdout).ok()?;
    told.status.success().then(|| name.trim().to_owned())
}

fn date(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March here, so that the leap day is the last; eras are of 400 years (H. Hinnant, "chrono-compatible
    // low-level date algorithms", civil_from_days).
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| date(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(at(951_782_399), "2000-02-28 23:59:59 UTC");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(at(1_798_761_599), "2026-12-31 23:59:59 UTC");
    }
}
