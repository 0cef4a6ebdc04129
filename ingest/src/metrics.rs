//! What the ingest service counts. Names are `millrace_ingest_<noun>_<unit>`; labels are few and fixed.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

/// Handles, made once and passed to whoever counts.
#[derive(Clone)]
pub(crate) struct IngestMetrics {
    /// Forms stored, by what became of them.
    pub normal: Counter,
    /// Exact duplicates stored.
    pub duplicate: Counter,
    /// Edits stored.
    pub edited: Counter,
    /// Error forms and submission error logs stored.
    pub failed: Counter,
    /// Forms and cases archived, deleted, rebuilt, and back.
    pub operations: Counter,
    /// Users, locations and definitions written.
    pub documents: Counter,
    /// Requests turned away because the queue was full.
    pub busy: Counter,
    /// Jobs per commit.
    pub group_size: Histogram,
    /// Seconds from taking a group to its commit.
    pub commit_seconds: Histogram,
    /// Groups that failed as a whole and were run one by one.
    pub split: Counter,
    /// Records that no in-process reader took from memory, because its channel was full.
    pub handover_missed: Counter,
    /// Objects written by the mover.
    pub packs: Counter,
    /// Rows of form XML waiting to be moved to the object store, as of the mover's last look.
    pub pending_rows: Gauge,
}

impl std::fmt::Debug for IngestMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IngestMetrics").finish_non_exhaustive()
    }
}

impl IngestMetrics {
    /// Registers every metric with the recorder installed in this process.
    pub(crate) fn new() -> Self {
        let stored = |outcome: &'static str| counter!("millrace_ingest_forms_total", "outcome" => outcome);
        Self {
            normal: stored("normal"),
            duplicate: stored("duplicate"),
            edited: stored("edited"),
            failed: stored("failed"),
            operations: counter!("millrace_ingest_operations_total"),
            documents: counter!("millrace_ingest_documents_total"),
            busy: counter!("millrace_ingest_refused_busy_total"),
            group_size: histogram!("millrace_ingest_group_jobs"),
            commit_seconds: histogram!("millrace_ingest_commit_seconds"),
            split: counter!("millrace_ingest_groups_split_total"),
            handover_missed: counter!("millrace_ingest_handover_missed_total"),
            packs: counter!("millrace_ingest_packs_total"),
            pending_rows: gauge!("millrace_ingest_pending_xml_rows"),
        }
    }
}
