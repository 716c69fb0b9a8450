//! The loop of a push over memory alone, against a copy of the same bytes.

use std::time::{Duration, Instant};

/// Two arrays, made and touched once: the first write to a page costs more than many passes over it.
pub(crate) struct Arrays {
    target: Vec<f32>,
    source: Vec<f32>,
}

impl Arrays {
    /// Two of `bytes` each.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { target: vec![0.0; bytes / 4], source: vec![1.0; bytes / 4] }
    }

    /// GB/s of `target[i] += source[i]`, counting the bytes of `source`, which a push would bring.
    pub(crate) fn add(&mut self, length: Duration, add: fn(&mut [f32], &[f32])) -> anyhow::Result<f64> {
        self.passes(length, add, |passes| passes as f32)
    }

    /// GB/s of `target[i] = source[i]`, as the C library copies.
    pub(crate) fn copy(&mut self, length: Duration) -> anyhow::Result<f64> {
        self.passes(length, <[f32]>::copy_from_slice, |_| 1.0)
    }

    fn passes(
        &mut self,
        length: Duration,
        pass: fn(&mut [f32], &[f32]),
        expected: fn(u32) -> f32,
    ) -> anyhow::Result<f64> {
        self.target.fill(0.0);
        let (begun, mut passes) = (Instant::now(), 0);
        loop {
            pass(&mut self.target, &self.source);
            passes += 1;
            std::hint::black_box(&mut self.target);
            if begun.elapsed() >= length {
                break;
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        let expected = expected(passes);
        let wrong = self.target.iter().filter(|&&value| value != expected).count();
        anyhow::ensure!(wrong == 0, "{wrong} values are wrong after {passes} passes over memory");
        Ok(f64::from(passes) * size_of_val(&*self.source) as f64 / seconds / 1e9)
    }
}

/// The loop that anybody would write, compiled for any machine.
pub(crate) fn plain_add(target: &mut [f32], source: &[f32]) {
    for (target, source) in target.iter_mut().zip(source) {
        *target += *source;
    }
}
