//! Rate limits of submissions: sliding windows by domain and for the whole process (platform.md §11).
//!
//! A domain is held back only while the process as a whole has no room **and** the domain's own share is used up: fair shares
//! under load, no limit in quiet times. A share grows with the domain's active mobile workers. Whoever is over an hour's,
//! a day's or a week's share is refused at once, others wait a little for room. A limiter that fails lets everybody pass.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use rand::Rng;
use schemas::{id::DomainId, port::Clock};
use tokio::time::{Duration, Instant};
use tokio_postgres::types::Type;

use crate::{
    config::{RateLimitConfig, Share},
    domain::Domains,
    error::DatabaseError,
};

/// Lengths of the windows in microseconds: a second, a minute, an hour, a day, a week.
const WINDOWS: [i64; 5] = [1_000_000, 60_000_000, 3_600_000_000, 86_400_000_000, 604_800_000_000];
/// What a day's share leaves for each window, relative to the day.
const RATIOS: [f64; 5] = [0.005 / 23.0, 0.07 / 23.0, 3.0 / 23.0, 1.0, 5.0];
/// The first window in which waiting is of no use.
const HOUR: usize = 2;
/// Parts into which a window is cut.
const GRAINS: i64 = 10;
/// Most domains remembered.
const CAPACITY: usize = 10_000;
/// How long the number of a domain's workers is believed, in microseconds.
const FRESH: i64 = 600_000_000;
/// The pauses between looks for room grow by random steps of this size.
const STEP: std::ops::Range<f64> = 0.1..0.5;

/// What happened within one window, by grains: the oldest counts by its overlap with the window.
#[derive(Clone, Copy, Debug, Default)]
struct Sliding {
    grains: [f64; GRAINS as usize + 1],
    /// Number of the newest grain since 1970.
    newest: i64,
}

impl Sliding {
    fn forward(&mut self, grain: i64) {
        let steps = grain.saturating_sub(self.newest).clamp(0, GRAINS + 1);
        for _ in 0..steps {
            self.grains.rotate_right(1);
            self.grains[0] = 0.0;
        }
        self.newest = self.newest.max(grain);
    }

    fn add(&mut self, window: i64, now: i64, amount: f64) {
        self.forward(now / (window / GRAINS));
        self.grains[0] += amount;
    }

    fn usage(&mut self, window: i64, now: i64) -> f64 {
        let length = window / GRAINS;
        self.forward(now / length);
        let elapsed = (now % length) as f64 / length as f64;
        let (whole, oldest) = self.grains.split_at(GRAINS as usize);
        whole.iter().sum::<f64>() + oldest.iter().sum::<f64>() * (1.0 - elapsed)
    }
}

/// One kind of work of one domain, or of all: every window.
#[derive(Clone, Copy, Debug, Default)]
struct Used([Sliding; 5]);

impl Used {
    fn add(&mut self, now: i64, amount: f64) {
        for (sliding, window) in self.0.iter_mut().zip(WINDOWS) {
            sliding.add(window, now, amount);
        }
    }

    /// The windows that are full, as a set of bits.
    fn full(&mut self, now: i64, limits: &[f64; 5]) -> u8 {
        let full = |(number, ((sliding, window), limit)): (usize, ((&mut Sliding, i64), &f64))| {
            u8::from(sliding.usage(window, now) >= *limit) << number
        };
        self.0.iter_mut().zip(WINDOWS).zip(limits).enumerate().map(full).fold(0, |all, bit| all | bit)
    }
}

/// Forms and changed cases.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    forms: Used,
    cases: Used,
}

#[derive(Debug, Default)]
struct State {
    all: Work,
    domains: HashMap<DomainId, Work>,
    /// Active mobile workers, with the time they were counted.
    workers: HashMap<DomainId, (i64, f64)>,
}

/// What a submission may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is taken.
    Room,
    /// There will be room soon.
    Soon,
    /// Not within the time that is worth waiting.
    Full,
}

/// A domain is over its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limited {
    /// Seconds after which to try again.
    pub retry_after: u64,
}

/// Counts work and holds domains back that are over their share.
#[derive(Debug)]
pub(crate) struct Limiter {
    config: RateLimitConfig,
    domains: Arc<Domains>,
    /// A lock because each submission counts once; never held over an await.
    state: Mutex<State>,
}

/// The limits of a domain with so many workers.
fn limits(share: &Share, workers: f64) -> [f64; 5] {
    let day = share.per_worker_day * workers;
    std::array::from_fn(|window| RATIOS[window] * day + share.per_domain[window])
}

impl Limiter {
    /// With these limits; counts workers in the account tables.
    pub(crate) fn new(config: RateLimitConfig, domains: Arc<Domains>) -> Self {
        Self { config, domains, state: Mutex::default() }
    }

    /// Waits for room for a submission to a domain.
    ///
    /// # Errors
    /// [`Limited`] if there is none in time.
    pub(crate) async fn admit(&self, domain: &DomainId, clock: &dyn Clock) -> Result<(), Limited> {
        if !self.config.enforced {
            return Ok(());
        }
        let workers = self.workers(domain, clock.now_micros()).await;
        let deadline = Instant::now() + Duration::from_millis(self.config.longest_wait_ms);
        let mut pause = 0.0;
        loop {
            match self.verdict(domain, workers, clock.now_micros()) {
                Verdict::Room => return Ok(()),
                Verdict::Full => return Err(Limited { retry_after: 60 }),
                Verdict::Soon => {}
            }
            pause += rand::rng().random_range(STEP);
            let pause = Duration::from_secs_f64(pause);
            if Instant::now() + pause > deadline {
                return Err(Limited { retry_after: 1 });
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Counts what was done.
    pub(crate) fn report(&self, domain: &DomainId, cases: usize, now: i64) {
        if !self.config.enforced {
            return;
        }
        let cases = cases as f64;
        let mut state = self.state.lock();
        if state.domains.len() >= CAPACITY && !state.domains.contains_key(domain) {
            state.domains.clear();
        }
        let State { all, domains, .. } = &mut *state;
        for work in [all, domains.entry(domain.clone()).or_default()] {
            work.forms.add(now, 1.0);
            work.cases.add(now, cases);
        }
    }

    fn verdict(&self, domain: &DomainId, workers: f64, now: i64) -> Verdict {
        let mut state = self.state.lock();
        let State { all, domains, .. } = &mut *state;
        let Some(own) = domains.get_mut(domain) else { return Verdict::Room };
        let kinds = [
            (&mut all.forms, &mut own.forms, &self.config.forms),
            (&mut all.cases, &mut own.cases, &self.config.case_updates),
        ];
        let mut verdict = Verdict::Room;
        for (all, own, share) in kinds {
            if all.full(now, &share.global) == 0 {
                continue;
            }
            match own.full(now, &limits(share, workers)) {
                0 => {}
                full if full >> HOUR != 0 => return Verdict::Full,
                _ => verdict = Verdict::Soon,
            }
        }
        verdict
    }

    /// Active mobile workers of a domain; as last known if they cannot be counted.
    async fn workers(&self, domain: &DomainId, now: i64) -> f64 {
        let known = self.state.lock().workers.get(domain).copied();
        if let Some((counted, workers)) = known
            && now.saturating_sub(counted) < FRESH
        {
            return workers;
        }
        match self.count(domain).await {
            Ok(workers) => {
                self.state.lock().workers.insert(domain.clone(), (now, workers));
                workers
            }
            Err(error) => {
                tracing::warn!(%error, %domain, "mobile workers could not be counted");
                known.map_or(f64::INFINITY, |(_, workers)| workers)
            }
        }
    }

    async fn count(&self, domain: &DomainId) -> Result<f64, DatabaseError> {
        let Some(home) = self.domains.home(domain).await? else { return Ok(0.0) };
        let row = home
            .get()
            .await?
            .query_typed_one(
                "SELECT count(*)::float8 FROM users u JOIN accounts a ON a.id = u.id WHERE u.domain = $1 AND a.is_active",
                &[(&domain.as_str(), Type::TEXT)],
            )
            .await?;
        Ok(row.try_get(0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::port::SystemClock;

    use crate::{config::IngestConfig, store::databases::Databases};

    const HOUR_MICROS: i64 = 3_600_000_000;

    fn limiter() -> Limiter {
        let config = RateLimitConfig { enforced: true, ..RateLimitConfig::default() };
        let databases = Databases::of(&IngestConfig::default()).unwrap();
        Limiter::new(config, Arc::new(Domains::new(databases, Arc::new(SystemClock), 1)))
    }

    fn domain(name: &str) -> DomainId {
        DomainId::new(name).unwrap()
    }

    #[test]
    fn the_oldest_grain_counts_by_its_overlap() {
        let mut sliding = Sliding::default();
        let window = 10_000;
        sliding.add(window, 500, 10.0);
        assert!((sliding.usage(window, 9_999) - 10.0).abs() < 1e-9);
        assert!((sliding.usage(window, 10_250) - 7.5).abs() < 1e-9);
        assert!((sliding.usage(window, 10_750) - 2.5).abs() < 1e-9);
        assert!(sliding.usage(window, 11_000).abs() < 1e-9);
        sliding.add(window, 500_000_000, 1.0);
        assert!((sliding.usage(window, 500_000_000) - 1.0).abs() < 1e-9, "a long pause leaves nothing behind");
    }

    #[test]
    fn shares_follow_the_table() {
        let config = RateLimitConfig::default();
        let of = limits(&config.forms, 100.0);
        let expected = [2.0, 24.0, 630.0, 4650.0, 23_100.0];
        for (found, expected) in of.iter().zip(expected) {
            assert!((found - expected).abs() < 0.01, "{of:?}");
        }
    }

    #[test]
    fn nobody_is_held_back_in_quiet_times_and_only_who_is_over_their_share_under_load() {
        let limiter = limiter();
        let (greedy, modest, now) = (domain("greedy"), domain("modest"), 1_000 * HOUR_MICROS);
        for _ in 0..20 {
            limiter.report(&greedy, 1, now);
        }
        assert_eq!(limiter.verdict(&greedy, 1.0, now), Verdict::Room, "the whole has room");
        for _ in 0..20 {
            limiter.report(&greedy, 1, now);
        }
        limiter.report(&modest, 1, now - HOUR_MICROS);
        assert_eq!(limiter.verdict(&greedy, 1.0, now), Verdict::Full, "its hour is used up");
        assert_eq!(limiter.verdict(&greedy, 100.0, now), Verdict::Soon, "with more workers its second is");
        assert_eq!(limiter.verdict(&modest, 1.0, now), Verdict::Room, "fair share");
        assert_eq!(limiter.verdict(&greedy, 1.0, now + 2_000_000), Verdict::Room, "the load has passed");
    }

    #[test]
    fn many_case_updates_count_as_such() {
        let limiter = limiter();
        let (bulk, now) = (domain("bulk"), 1_000 * HOUR_MICROS);
        limiter.report(&bulk, 5_000, now);
        assert_eq!(limiter.verdict(&bulk, 1.0, now), Verdict::Full);
        assert_eq!(limiter.verdict(&domain("other"), 1.0, now), Verdict::Room);
    }
}
