//! The crate from the outside and the inside, over a small made-up world of two domains.

mod directory;
mod http;
mod inside;
mod overhead;
mod postgres;
mod rest;
mod sql;
mod world;
