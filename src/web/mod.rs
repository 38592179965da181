//! The HTTP kit that every edge is built from.
//!
//! An edge makes a plain [`axum::Router`]; [`kit::finish`] puts around it what all listeners share:
//! bounds on size and time, a log line and metrics per request, Matrix-shaped answers to whatever no
//! route takes, and a caught panic. [`serve()`] runs it until it is told to stop. Handlers answer
//! `Result<_, ApiError>`, and take JSON as [`MatrixJson`], forms as [`MatrixForm`] and bytes as
//! [`MatrixBytes`], whose rejections have Matrix's shape too.

mod bearer;
mod client_addr;
mod error;
mod extract;
pub mod kit;
pub mod openapi;
mod peers;
mod serve;
mod taken;

pub use self::{
    bearer::Bearer,
    client_addr::ClientAddr,
    error::ApiError,
    extract::{MatrixBytes, MatrixForm, MatrixJson, MatrixPath},
    peers::Peers,
    serve::serve,
};
