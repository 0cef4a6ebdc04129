//! The closed list of ways a request can fail, shared by every protocol.

/// What kind of failure an error is, so that each protocol maps it in one `match`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The request is malformed or names something impossible; repeating it cannot help.
    BadRequest,
    /// No or wrong credentials.
    Unauthenticated,
    /// Known caller, not allowed.
    Forbidden,
    /// The thing named does not exist for this caller.
    NotFound,
    /// The request contradicts the present state.
    Conflict,
    /// A size limit was crossed.
    TooLarge,
    /// Slow down; answered with `Retry-After`.
    RateLimited,
    /// A dependency is away or still starting; the same request may succeed later.
    Unavailable,
    /// A deadline passed before the answer was known.
    Timeout,
    /// A fault of ours.
    Internal,
}

impl ErrorClass {
    /// The HTTP status of this class.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::RateLimited => 429,
            Self::Unavailable => 503,
            Self::Timeout => 504,
            Self::Internal => 500,
        }
    }
}

/// Implemented by every error that can reach a client.
pub trait Classify {
    /// Returns the class that decides status code and retry advice.
    fn class(&self) -> ErrorClass;
}
