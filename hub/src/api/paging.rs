//! Lists in pages: `?limit=&cursor=` → `{items, next_cursor}`.
//!
//! A cursor is the key of the last item that was sent; clients treat it as opaque.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::Problem;

const DEFAULT_LIMIT: usize = 100;
const MOST: usize = 1000;

/// Which page.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Items per page: 1 to 1000, 100 when left out.
    #[param(required = false)]
    pub limit: Option<usize>,
    /// `next_cursor` of the page before.
    #[param(required = false)]
    pub cursor: Option<String>,
}

/// One page.
#[derive(Debug, Serialize, ToSchema)]
pub struct Page<T> {
    /// The items, in the list's order.
    pub items: Vec<T>,
    /// For the next page; null on the last one.
    pub next_cursor: Option<String>,
}

impl PageQuery {
    /// How many items to send.
    pub fn limit(&self) -> usize {
        self.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MOST)
    }

    /// The cursor as the key that it is.
    ///
    /// # Errors
    /// 400 for a cursor that was made up.
    pub fn cursor<K: std::str::FromStr>(&self) -> Result<Option<K>, Problem> {
        self.cursor.as_deref().map(|text| text.parse().map_err(|_| bad_cursor())).transpose()
    }

    /// The page of a whole list whose items have unique keys.
    ///
    /// # Errors
    /// 400 when the item at the cursor is gone.
    pub fn cut<T>(&self, items: Vec<T>, key: impl Fn(&T) -> String) -> Result<Page<T>, Problem> {
        let start = match &self.cursor {
            None => 0,
            Some(cursor) => 1 + items.iter().position(|item| key(item) == *cursor).ok_or_else(bad_cursor)?,
        };
        let rest = items.into_iter().skip(start).take(self.limit() + 1).collect();
        Ok(self.of(rest, key))
    }

    /// The page of items that were fetched from behind the cursor, up to one more than the limit.
    pub fn of<T>(&self, mut items: Vec<T>, key: impl Fn(&T) -> String) -> Page<T> {
        let more = items.len() > self.limit();
        items.truncate(self.limit());
        let next_cursor = items.last().filter(|_| more).map(key);
        Page { items, next_cursor }
    }
}

impl<T> Page<T> {
    /// The same page of something else.
    pub fn map<U>(self, view: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(view).collect(), next_cursor: self.next_cursor }
    }
}

fn bad_cursor() -> Problem {
    Problem::malformed("this cursor does not lead anywhere any more; begin again with the first page")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_add_up_to_the_list() {
        let (mut cursor, mut seen) = (None, Vec::new());
        loop {
            let query = PageQuery { limit: Some(3), cursor };
            let page = query.cut((0..7).collect(), i32::to_string).unwrap();
            seen.extend(page.items);
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen, (0..7).collect::<Vec<_>>());
        let exact = PageQuery { limit: Some(7), cursor: None };
        assert_eq!(exact.cut((0..7).collect(), i32::to_string).unwrap().next_cursor, None);
    }

    #[test]
    fn a_made_up_cursor_is_refused() {
        let query = PageQuery { limit: None, cursor: Some("x".into()) };
        assert!(query.cut(vec![1], i32::to_string).is_err());
        assert!(query.cursor::<u64>().is_err());
    }
}
