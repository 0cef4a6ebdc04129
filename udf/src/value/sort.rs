//! A stable sort for orders that may not be total: the standard library's may panic on those.

use std::cmp::Ordering;

/// Sorts by `order`, keeping equal elements in place.
///
/// # Errors
/// The first error of `order`.
pub(crate) fn stable_sort<T, E>(
    mut items: Vec<T>,
    order: &impl Fn(&T, &T) -> Result<Ordering, E>,
) -> Result<Vec<T>, E> {
    if items.len() < 2 {
        return Ok(items);
    }
    let right = items.split_off(items.len() / 2);
    let mut left = stable_sort(items, order)?.into_iter().peekable();
    let mut right = stable_sort(right, order)?.into_iter().peekable();
    let mut merged = Vec::with_capacity(left.len() + right.len());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let next = if order(a, b)? == Ordering::Greater { right.next() } else { left.next() };
        merged.extend(next);
    }
    merged.extend(left);
    merged.extend(right);
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_elements_keep_their_places() {
        let items = vec![(2, 'a'), (1, 'b'), (2, 'c'), (1, 'd'), (0, 'e')];
        let sorted = stable_sort(items, &|a: &(i32, char), b: &(i32, char)| Ok::<_, ()>(a.0.cmp(&b.0))).unwrap();
        assert_eq!(sorted.iter().map(|(_, c)| *c).collect::<String>(), "ebdac");
        assert_eq!(stable_sort(vec![1, 2], &|_, _| Err("no order")), Err("no order"));
    }
}
