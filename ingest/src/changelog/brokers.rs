//! What the client library says of the brokers, no more often than a person wants to read it.
//!
//! While brokers are away the library reports it several times a second, for hours if need be.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::{ClientContext, config::RDKafkaLogLevel, error::KafkaError};

/// Least time between two warnings.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Passes on what the library says.
#[derive(Debug, Default)]
pub(crate) struct Brokers {
    /// Time of the last warning. Held for a moment by the library's threads, never over an await.
    warned: Mutex<Option<Instant>>,
}

impl Brokers {
    /// True once in a while.
    fn may_warn(&self, now: Instant) -> bool {
        let mut warned = self.warned.lock();
        let may = warned.is_none_or(|last| now.duration_since(last) >= WARN_EVERY);
        if may {
            *warned = Some(now);
        }
        may
    }
}

impl ClientContext for Brokers {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        use RDKafkaLogLevel::{Alert, Critical, Debug, Emerg, Error, Info, Notice, Warning};
        // That a setting is experimental was known when it was chosen.
        let chosen = facility == "CONFWARN";
        match level {
            Emerg | Alert | Critical | Error | Warning if !chosen && self.may_warn(Instant::now()) => {
                tracing::warn!(facility, message, "Kafka's client library");
            }
            Emerg | Alert | Critical | Error | Warning | Notice | Info | Debug => {
                tracing::debug!(facility, message, "Kafka's client library");
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if self.may_warn(Instant::now()) {
            tracing::warn!(%error, reason, "Kafka cannot be used; what is due to it waits in the outbox");
        } else {
            tracing::debug!(%error, reason, "Kafka cannot be used");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_a_minute_apart() {
        let brokers = Brokers::default();
        let begun = Instant::now();
        let said = (0..180).filter(|second| brokers.may_warn(begun + Duration::from_secs(*second))).count();
        assert_eq!(said, 3);
    }
}
