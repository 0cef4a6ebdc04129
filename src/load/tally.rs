//! What has been counted and measured so far, and the JSON object that a run ends with.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::work::Novelty;

/// Longest latency told apart, in microseconds: ten minutes.
const LONGEST: u64 = 600_000_000;
/// Different messages kept.
const MESSAGES: usize = 20;

/// A histogram of latencies with three digits.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Option<Histogram<u64>>);

impl Default for Latencies {
    fn default() -> Self {
        // The bounds are constants that the library accepts; without a histogram nothing would be recorded.
        Self(Histogram::new_with_bounds(1, LONGEST, 3).ok())
    }
}

impl Latencies {
    /// Adds one.
    pub(crate) fn record(&mut self, latency: Duration) {
        if let Some(histogram) = &mut self.0 {
            histogram.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(LONGEST).max(1));
        }
    }

    /// How many.
    pub(crate) fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, Histogram::len)
    }

    /// The latency that a share of them does not exceed, in milliseconds; nothing if there are none.
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        let histogram = self.0.as_ref().filter(|histogram| !histogram.is_empty())?;
        Some(milliseconds(histogram.value_at_quantile(share) as f64))
    }

    /// Percentiles in milliseconds.
    pub(crate) fn json(&self) -> Value {
        let whole = |of: fn(&Histogram<u64>) -> f64| {
            self.0.as_ref().filter(|histogram| !histogram.is_empty()).map(|histogram| milliseconds(of(histogram)))
        };
        json!({
            "count": self.count(),
            "mean": whole(Histogram::mean),
            "p50": self.quantile(0.5),
            "p95": self.quantile(0.95),
            "p99": self.quantile(0.99),
            "p99_9": self.quantile(0.999),
            "max": whole(|histogram| histogram.max() as f64),
        })
    }
}

fn milliseconds(micros: f64) -> f64 {
    (micros.round()) / 1000.0
}

/// Why something was tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// 429: the server asked to slow down.
    Limited,
    /// 5xx, or 423: the form is locked.
    Server,
    /// No answer.
    Connection,
}

/// Counters and latencies. All public fields are plain facts; [`Tally`] guards them.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Forms whose first attempt was made.
    pub(crate) sent: u64,
    /// Of these: new, edits, repeats.
    pub(crate) novelties: [u64; 3],
    /// Forms acknowledged.
    pub(crate) acknowledged: u64,
    /// Forms refused for good or given up.
    pub(crate) failed: u64,
    /// Attempts repeated: asked to slow down, server errors, no answer.
    pub(crate) retries: [u64; 3],
    /// Moves acknowledged and failed.
    pub(crate) moves: [u64; 2],
    /// Forms seen in every table they touch.
    pub(crate) visible: u64,
    /// Forms acknowledged and not seen (yet).
    pub(crate) waiting: u64,
    /// Statements of the freshness prober, and how many of them failed.
    pub(crate) probes: [u64; 2],
    /// First attempt to acknowledgement.
    pub(crate) ack: Latencies,
    /// Due time to acknowledgement.
    pub(crate) ack_from_due: Latencies,
    /// Acknowledgement to visible.
    pub(crate) fresh: Latencies,
    /// Due time to visible.
    pub(crate) fresh_from_due: Latencies,
    /// As `fresh`, since the display last looked.
    pub(crate) recent: Latencies,
    /// Messages of failures, with how often each came.
    messages: BTreeMap<String, u64>,
    /// Failures whose message found no place.
    other_messages: u64,
}

impl Counts {
    /// Notes a failure.
    pub(crate) fn error(&mut self, message: String) {
        if self.messages.len() < MESSAGES || self.messages.contains_key(&message) {
            *self.messages.entry(message).or_default() += 1;
        } else {
            self.other_messages += 1;
        }
    }

    /// Failures so far.
    pub(crate) fn errors(&self) -> u64 {
        self.messages.values().sum::<u64>() + self.other_messages
    }
}

/// Shared by the tasks of a run. The lock guards the counters, is held for single updates only and never over `.await`.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<Counts>);

impl Tally {
    /// Updates or reads the counters.
    pub(crate) fn with<T>(&self, body: impl FnOnce(&mut Counts) -> T) -> T {
        body(&mut self.0.lock())
    }

    /// Counts a form's first attempt.
    pub(crate) fn sent(&self, novelty: Novelty) {
        self.with(|counts| {
            counts.sent += 1;
            let [new, edit, duplicate] = &mut counts.novelties;
            *match novelty {
                Novelty::New => new,
                Novelty::Edit => edit,
                Novelty::Duplicate => duplicate,
            } += 1;
        });
    }

    /// Counts an attempt that will be repeated.
    pub(crate) fn retried(&self, why: Retry) {
        self.with(|counts| {
            let [limited, server, connection] = &mut counts.retries;
            *match why {
                Retry::Limited => limited,
                Retry::Server => server,
                Retry::Connection => connection,
            } += 1;
        });
    }

    /// The counted part of the JSON object a run ends with.
    pub(crate) fn json(&self) -> Value {
        self.with(|counts| {
            let [new, edits, duplicates] = counts.novelties;
            let [limited, server, connection] = counts.retries;
            json!({
                "forms": {
                    "sent": counts.sent, "acknowledged": counts.acknowledged, "failed": counts.failed,
                    "new": new, "edits": edits, "duplicates": duplicates,
                },
                "moves": {"acknowledged": counts.moves[0], "failed": counts.moves[1]},
                "retries": {"rate_limited": limited, "server_error": server, "no_answer": connection},
                "latency_ms": {
                    "ack": counts.ack.json(),
                    "ack_from_due": counts.ack_from_due.json(),
                    "acknowledged_to_visible": counts.fresh.json(),
                    "due_to_visible": counts.fresh_from_due.json(),
                },
                "probes": {"statements": counts.probes[0], "failed": counts.probes[1]},
                "errors": {"count": counts.errors(), "messages": counts.messages, "other": counts.other_messages},
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_milliseconds_with_three_digits() {
        let mut latencies = Latencies::default();
        assert_eq!((latencies.json()["p50"].clone(), latencies.json()["count"].clone()), (Value::Null, json!(0)));
        (1..=1000).for_each(|n| latencies.record(Duration::from_millis(n)));
        let json = latencies.json();
        for (name, expected) in
            [("p50", 500.0), ("p95", 950.0), ("p99", 990.0), ("p99_9", 999.0), ("max", 1000.0), ("mean", 500.5)]
        {
            let value = json[name].as_f64().unwrap();
            assert!((value - expected).abs() <= expected / 500.0, "{name} is {value}");
        }
        assert_eq!(json["count"], 1000);
        latencies.record(Duration::from_secs(100_000));
        assert!(latencies.quantile(1.0).unwrap() <= 600_500.0);
    }

    #[test]
    fn the_result_names_everything() {
        let tally = Tally::default();
        tally.sent(Novelty::New);
        tally.sent(Novelty::Edit);
        tally.retried(Retry::Limited);
        tally.with(|counts| (0..100).for_each(|n| counts.error(format!("failure {}", n % 50))));
        let json = tally.json();
        assert_eq!(
            json["forms"],
            json!({"sent": 2, "acknowledged": 0, "failed": 0, "new": 1, "edits": 1, "duplicates": 0})
        );
        assert_eq!(json["retries"]["rate_limited"], 1);
        assert_eq!(json["errors"]["count"], 100);
        assert_eq!(json["errors"]["messages"].as_object().unwrap().len(), MESSAGES);
        for histogram in ["ack", "ack_from_due", "acknowledged_to_visible", "due_to_visible"] {
            for field in ["count", "mean", "p50", "p95", "p99", "p99_9", "max"] {
                assert!(json["latency_ms"][histogram].get(field).is_some(), "{histogram}.{field}");
            }
        }
    }
}
