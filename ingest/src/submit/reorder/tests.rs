//! The comparison and its abandonment, as upstream's tests of its update strategy and of its sort key have them.

use schemas::id::FormId;

use super::*;

const HOUR: i64 = 3_600_000_000;
const DAY: i64 = 24 * HOUR;

const FORM: TransactionKind = TransactionKind::FORM;
const CREATE: TransactionKind = TransactionKind(1 | 128);

/// A form's row: when it arrived, and when the phone says it was made.
fn row(form: &str, user: &str, kind: TransactionKind, server_date: i64, client_date: i64) -> StoredTransaction {
    StoredTransaction {
        form_id: Some(FormId::new(form).unwrap()),
        user_id: Some(user.to_owned()),
        kind,
        server_date,
        client_date: Some(client_date),
        sync_log_id: None,
        revoked: false,
        form_normal: true,
        blocks: Vec::new(),
    }
}

fn rebuilt(server_date: i64) -> StoredTransaction {
    let kind = TransactionKind::REBUILD_WITH_REASON;
    StoredTransaction {
        form_id: None,
        user_id: None,
        client_date: None,
        form_normal: false,
        ..row("none", "", kind, server_date, 0)
    }
}

/// The forms of rows in the order of a replay; empty if there is none.
fn replayed(rows: &[StoredTransaction]) -> Vec<&str> {
    let ids: Vec<String> = rows.iter().filter_map(|row| Some(row.form_id.as_ref()?.to_string())).collect();
    match order(rows, &ids) {
        Order::Replay(rows) => rows.iter().filter_map(|row| Some(row.form_id.as_ref()?.as_str())).collect(),
        Order::Kept | Order::NoCreate => Vec::new(),
    }
}

#[test]
fn an_early_client_date_that_arrives_late_is_reconciled_once() {
    let mut rows = vec![row("a", "u", CREATE, 10 * DAY, 10 * DAY), row("b", "u", FORM, 11 * DAY, 8 * DAY)];
    assert_eq!(replayed(&rows), ["a", "b"], "more than 12 hours apart the server's dates count");
    rows.push(rebuilt(11 * DAY));
    assert_eq!(order(&rows, &[]), Order::Kept);
}

#[test]
fn forms_in_order_need_nothing() {
    let rows = [row("a", "u", CREATE, 10 * DAY, 10 * DAY), row("b", "u", FORM, 11 * DAY, 11 * DAY)];
    assert_eq!(order(&rows, &[]), Order::Kept);
    assert_eq!(order(&[], &[]), Order::Kept);
}

#[test]
fn what_lies_before_a_rebuild_is_not_looked_at() {
    let rows = [row("a", "u", CREATE, 10 * DAY, 10 * DAY), row("b", "u", FORM, 11 * DAY, 8 * DAY), rebuilt(13 * DAY)];
    assert_eq!(order(&rows, &[]), Order::Kept);
    let later = [rows.as_slice(), &[row("c", "u", FORM, 13 * DAY + HOUR, 13 * DAY - HOUR)]].concat();
    assert_eq!(replayed(&later), ["a", "b", "c"], "the rebuild has no phone date: the server's stands in");
}

#[test]
fn a_create_that_arrives_after_updates_is_not_repaired() {
    let rows = [row("u", "u", FORM, HOUR, HOUR), row("c", "u", CREATE, 2 * HOUR, 0)];
    assert_eq!(order(&rows, &[]), Order::Kept, "the comparison begins at the newest create (s008)");
}

#[test]
fn a_case_that_no_create_would_begin_is_left_alone() {
    let rows = [
        row("early", "u", FORM, 8 * DAY, 8 * DAY),
        row("create", "u", CREATE, 10 * DAY, 10 * DAY),
        row("late", "u", FORM, 10 * DAY + HOUR, 9 * DAY),
    ];
    assert_eq!(order(&rows, &[]), Order::NoCreate);
    let never_made = [row("a", "u", FORM, HOUR, HOUR), row("b", "u", FORM, 2 * HOUR, 0)];
    assert_eq!(order(&never_made, &[]), Order::NoCreate);
}

#[test]
fn forms_of_one_user_within_half_a_day_go_by_the_phones_dates() {
    let rows = [
        row("create", "u", CREATE, 0, 0),
        row("second", "u", FORM, 10 * HOUR, 9 * HOUR),
        row("first", "u", FORM, 11 * HOUR, 8 * HOUR),
        row("third", "u", FORM, 11 * HOUR, 10 * HOUR),
    ];
    assert_eq!(replayed(&rows), ["create", "first", "second", "third"]);
}

#[test]
fn forms_of_other_users_go_by_arrival() {
    let rows =
        [row("create", "u", CREATE, 0, 0), row("second", "u", FORM, HOUR, HOUR), row("other", "v", FORM, 2 * HOUR, 1)];
    assert_eq!(replayed(&rows), ["create", "second", "other"]);
}

#[test]
fn the_comparison_is_the_contracts() {
    let ids = ["f1".to_owned(), "f2".to_owned()];
    let less = |a: &StoredTransaction, b: &StoredTransaction| {
        assert_eq!((compare(a, b, &ids), compare(b, a, &ids)), (Ordering::Less, Ordering::Greater), "{a:?} {b:?}");
    };
    let bits = |bits: i32| TransactionKind(1 | bits);
    // One form: by type, whatever the dates.
    for (a, b) in [(128, 512), (512, 256), (256, 1024), (1024, 64), (64, 0)] {
        less(&row("f1", "u", bits(a), 0, 9), &row("f1", "u", bits(b), 0, 1));
    }
    // One user: by the phone's date, then as applied, then by type.
    less(&row("f2", "u", FORM, 5, 1), &row("f1", "u", FORM, 0, 2));
    less(&row("f1", "u", FORM, 5, 1), &row("f2", "u", FORM, 0, 1));
    less(&row("f3", "u", CREATE, 5, 1), &row("f4", "u", FORM, 0, 1));
    // Up to 12 hours apart, and no further.
    less(&row("f2", "u", FORM, 12 * HOUR, 1), &row("f1", "u", FORM, 0, 2));
    less(&row("f1", "u", FORM, 0, 2), &row("f2", "u", FORM, 12 * HOUR + 1, 1));
    // Two users: by arrival.
    less(&row("f1", "u", FORM, 0, 2), &row("f2", "v", FORM, 1, 1));
    assert_eq!(compare(&row("f1", "u", FORM, 1, 2), &row("f2", "v", FORM, 1, 1), &ids), Ordering::Equal);
}

#[test]
fn sorting_takes_any_comparison_and_loses_nothing() {
    assert_eq!(sorted(vec![3, 1, 2, 0, 2], &|a: i32, b: i32| a.cmp(&b)), [0, 1, 2, 2, 3]);
    // Stone, paper, scissors: each before the next, in a circle.
    let mut rows = sorted((0..30).collect(), &|a: i32, b: i32| match (b - a).rem_euclid(3) {
        0 => Ordering::Equal,
        1 => Ordering::Less,
        _ => Ordering::Greater,
    });
    rows.sort_unstable();
    assert_eq!(rows, (0..30).collect::<Vec<_>>());
}
