//! Knows: the tables of a job, and the settings that follow from its data.
//! Knows not: rounds, lanes, what is pushed.
//! Called by: the loop in `mod.rs`, once, and whenever it names a table.
//! Paper: OSDI'14 §3.1 (parameters as ranges of keys).

use rangefold_proto::{Aggregation, ElementType, TableSpec, UpdateFunction};
use rangefold_transport::Endpoint;
use rangefold_workers::driver::Dialer;
use rangefold_workers::{Client, Table};

use super::{Job, TrainError};
use crate::part::Survey;
use crate::plan::{LOSSES, Settings};
use crate::standing::Standing;

/// Elements of a row of the table of weights: weight and anchor.
pub(super) const ROW: usize = 2;

/// The tables of a job; all are aggregated by rounds.
pub(super) struct Tables<E: Endpoint, D: Dialer> {
    pub(super) weights: Table<f64, E, D>,
    gradients: [Table<f64, E, D>; 2],
    pub(super) losses: Table<f64, E, D>,
    /// Dual value, and how many workers were interrupted.
    pub(super) dual: Table<f64, E, D>,
    /// Where the job stands, for workers that come later.
    pub(super) standing: Table<f64, E, D>,
}

pub(super) fn settings(job: &Job, survey: &Survey) -> Settings {
    let weights_len = survey.weights_len();
    let mut segments = usize::from(job.segments.max(1));
    while segments > 1 && segments > weights_len {
        segments /= 2;
    }
    Settings {
        lambda: job.lambda,
        gap: job.gap,
        delay: job.delay as usize,
        seed: job.seed,
        weights_len,
        segment_len: weights_len.div_ceil(segments),
        passes_max: job.passes_max,
    }
}

impl<E, D> Tables<E, D>
where
    E: Endpoint + Send + 'static,
    D: Dialer + Send + 'static,
{
    /// Makes the tables: the small ones first, which waits for all servers; large ones only if their rounds fit.
    pub(super) fn new(
        client: &Client<E, D>,
        job: &Job,
        survey: &Survey,
        settings: &Settings,
    ) -> Result<Self, TrainError> {
        let keys = settings.weights_len as u64;
        let segments = settings.weights_len.div_ceil(settings.segment_len).next_power_of_two();
        // Segments of equal length: keys above the weights are there for that alone.
        let len = (segments * settings.segment_len) as u64;
        let spec = |name: &str, len: u64, width: usize, update: UpdateFunction| {
            let mut spec = TableSpec::dense(name, ElementType::F64, len, update);
            spec.width = u32::try_from(width).unwrap_or(u32::MAX);
            spec.aggregation = Aggregation::Round;
            spec.segments = spec.segments.min(job.segments.max(1));
            spec
        };
        let sums = |name: &str, len: u64, width: usize| {
            client.table(&spec(name, len, width, UpdateFunction::Assign))
        };
        let losses = sums("lr/losses", 1, LOSSES)?;
        //= protocol.md B6
        // A round's pushes hold credit until it is applied. All parts may come to be held by one worker, so all of them must
        // fit its connections together.
        let (shards, limit) = (client.shard_count(), client.limits().push_bytes_per_link);
        let most = (limit * shards as u64) / (u64::from(job.parts).max(ROW as u64) * 8);
        if keys > most {
            let (features, parts) = (survey.features, job.parts);
            return Err(TrainError::TooManyFeatures { features, parts, shards, most });
        }
        let mut weights = spec("lr/weights", len, ROW, UpdateFunction::ProximalL1);
        weights.segments = u16::try_from(segments).unwrap_or(u16::MAX);
        Ok(Self {
            weights: client.table(&weights)?,
            gradients: [sums("lr/gradient/even", keys, 1)?, sums("lr/gradient/odd", keys, 1)?],
            losses,
            dual: sums("lr/dual", 1, 2)?,
            standing: sums("lr/standing", 1, Standing::WIDTH)?,
        })
    }

    /// The gradient at the certificate of this number, from 0. It is there until the certificate after the next.
    pub(super) fn gradient_of(&self, certificate: u64) -> &Table<f64, E, D> {
        &self.gradients[usize::from(!certificate.is_multiple_of(2))]
    }
}
