//! backend

pub mod pool;
