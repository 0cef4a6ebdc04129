//! What a stored definition says besides what the view is: whether it is maintained, and what may come in its place.

use serde_json::Value;

/// How a view is to be treated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Control {
    /// `"paused": true`: the last table stays, and is not maintained.
    pub paused: bool,
    /// `"preview": {…}`: another definition, to be built beside and compared.
    pub preview: Option<Value>,
}

/// A key that does not hold what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` must be {expected}")]
pub struct ControlError {
    /// The key.
    pub key: &'static str,
    /// What belongs there.
    pub expected: &'static str,
}

impl Control {
    /// Takes the keys out of a document, which then says what the view is and nothing else.
    ///
    /// # Errors
    /// [`ControlError`] if one of them holds something else.
    pub fn take(document: &mut Value) -> Result<Self, ControlError> {
        let mut key = |name| document.as_object_mut().and_then(|fields| fields.remove(name));
        let paused = match key("paused") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(paused)) => paused,
            Some(_) => return Err(ControlError { key: "paused", expected: "true or false" }),
        };
        let preview = match key("preview") {
            None | Some(Value::Null) => None,
            Some(preview @ Value::Object(_)) => Some(preview),
            Some(_) => return Err(ControlError { key: "preview", expected: "a definition" }),
        };
        Ok(Self { paused, preview })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_left_says_what_the_view_is() {
        let mut document = json!({"table_id": "visits", "paused": true, "preview": {"table_id": "visits"}});
        let preview = Some(json!({"table_id": "visits"}));
        assert_eq!(Control::take(&mut document), Ok(Control { paused: true, preview }));
        assert_eq!(document, json!({"table_id": "visits"}));
        assert_eq!(Control::take(&mut document), Ok(Control::default()));
        let error = Control::take(&mut json!({"paused": "yes"})).unwrap_err();
        assert_eq!(error.to_string(), "`paused` must be true or false");
    }
}
