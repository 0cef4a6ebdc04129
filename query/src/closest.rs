//! Known names that look like a name someone mistyped.

/// Most names offered.
const OFFERED: usize = 5;

/// The known names nearest to `wanted`, nearest first: those within a third of its length in edits, or that hold it.
pub(crate) fn closest<'a>(wanted: &str, known: impl Iterator<Item = &'a str>) -> Vec<String> {
    let wanted = wanted.to_lowercase();
    let reach = wanted.chars().count() / 3 + 1;
    let mut found: Vec<(usize, &str)> = known
        .filter_map(|name| {
            let lower = name.to_lowercase();
            // Names of schemas in front do not count.
            let short = lower.rsplit('.').next().unwrap_or(&lower);
            let distance = edits(&wanted, short).min(edits(&wanted, &lower));
            let inside = wanted.len() >= 3 && lower.contains(&wanted);
            (distance <= reach || inside).then_some((if inside { distance.min(reach) } else { distance }, name))
        })
        .collect();
    found.sort();
    found.dedup();
    found.truncate(OFFERED);
    found.into_iter().map(|(_, name)| name.to_owned()).collect()
}

/// Letters to insert, delete or replace to turn one text into the other.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(&to) {
            let replace = diagonal + usize::from(a != *b);
            diagonal = *cell;
            left = replace.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_names_come_first() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
        let known = ["ucr.pregnancies", "ucr.visits", "views.visits_by_month", "system.views"];
        assert_eq!(closest("pregnancy", known.into_iter()), ["ucr.pregnancies"]);
        assert_eq!(closest("visit", known.into_iter()), ["ucr.visits", "views.visits_by_month", "system.views"][..2]);
        assert!(closest("zzz", known.into_iter()).is_empty());
    }
}
