//! What must be said of a host beside every figure.
//! Knows where Linux tells it; what it does not tell is "unknown", never a failure. Asked by both roles.

use rangefold::pinning;
use serde::{Deserialize, Serialize};

/// A text from another host is cut here.
const TEXT_CHARS_MAX: usize = 200;

/// What must not break a line or a terminal, whoever wrote it.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What another host says: the same, and not too much of it.
pub(super) fn cleaned(text: &str) -> String {
    one_line(text).chars().take(TEXT_CHARS_MAX).collect()
}

/// A host, in words.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) kernel: String,
    pub(super) processor: String,
    /// Processors that the process may use.
    pub(super) processors: Vec<u32>,
}

impl Host {
    /// This one. Before any thread is bound: a bound thread is told of one processor.
    pub(super) fn here() -> Self {
        let known = |text: Option<String>| text.unwrap_or_else(|| "unknown".into());
        Self {
            name: known(read("/proc/sys/kernel/hostname")),
            kernel: known(read("/proc/sys/kernel/osrelease").map(|release| format!("Linux {release}"))),
            processor: processor(),
            processors: pinning::allowed().into_iter().filter_map(|core| u32::try_from(core).ok()).collect(),
        }
    }

    /// One line of it.
    pub(super) fn line(&self) -> String {
        let cores = self.processors.len();
        format!("{}, {}, {}, processors to use: {cores}", self.name, self.kernel, self.processor)
    }

    /// The same of another host, fit for a terminal.
    pub(super) fn cleaned(&self) -> Self {
        Self {
            name: cleaned(&self.name),
            kernel: cleaned(&self.kernel),
            processor: cleaned(&self.processor),
            processors: self.processors.clone(),
        }
    }
}

/// The model, and whether it is a virtual one.
fn processor() -> String {
    let all = read("/proc/cpuinfo").unwrap_or_default();
    let of = |name: &str| {
        all.lines().find(|line| line.starts_with(name))?.split_once(": ").map(|(_, value)| value)
    };
    let guest = of("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"));
    // Only x86-64 names its model.
    let model = of("model name").unwrap_or(std::env::consts::ARCH);
    format!("{model}{}", if guest { ", virtual machine" } else { "" })
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_described_in_a_line() {
        let here = Host::here();
        assert!(here.kernel.starts_with("Linux ") && !here.processors.is_empty());
        assert!(!here.line().contains('\n'));
    }

    #[test]
    fn what_another_host_says_cannot_write_to_the_terminal() {
        let text = format!("evil\n# size\u{1b}[2J{}", "x".repeat(10_000));
        let host =
            Host { name: text.clone(), kernel: text, processor: String::new(), processors: Vec::new() };
        let line = host.cleaned().line();
        assert!(line.chars().count() < 500 && !line.chars().any(char::is_control), "{line:?}");
    }
}
