//! `cnse`: infrastructure for llama.cpp's `llama-server` on modest machines.
//!
//! No async runtime: one thread a core, each with its own epoll, and every protocol a machine that
//! is handed bytes and time and never sees a socket. Data flows down this list; a module may use
//! those below it and nothing above (`tests/tidy.rs` holds it to that).
//!
//! ```text
//! cli        parse, validate, wire the parts together, exit code      one file per subcommand
//! bench      load generators and their reports                        measures from outside
//! gateway    one worker per core: admission, credit, routing, drain   the life of a request
//! batch      rows in, results out: input, journal, merge, requests    what a job's tasks are
//! sched      ranks, stealing, termination; local | mpi | sim          knows tasks by size only
//! backend    what to say to a backend and how to read its answer      builtin | llama | openai
//! store      blobs by sha256, manifests, tags, cache, remotes         a directory, a filer
//! cuda       driver, memory pools, streams, launches                 only what has a CPU twin
//! post       sampling, embeddings, weights: what is done with numbers  each to the bit
//! proto      sans-IO connection machines: binary and HTTP, both ends  bytes in, events out
//! net        poller, sockets, slabs, timers                           all file descriptors
//! wire       frames, fields, HTTP heads, SSE, JSON bodies             bytes <-> values, stateless
//! machine    what it is, what else runs on it                        read from /proc
//! metrics    histograms, counters, Prometheus text                    one per core
//! leaves     limits, clock, prng, log
//! ```
//!
//! A request's way: bytes, `net`, `proto`, `gateway` (admission, routing), `backend` (codec),
//! `proto` (HTTP client), `net`, llama-server; the tokens come back the same way, on the same core
//! and the same epoll.
//!
//! The public surface exists for the tests and benches of this package only.

pub mod backend;
pub mod batch;
pub mod bench;
pub mod cli;
pub mod clock;
pub mod cuda;
pub mod gateway;
pub mod limits;
pub mod log;
pub mod machine;
pub mod metrics;
pub mod net;
pub mod post;
pub mod prng;
pub mod proto;
pub mod sched;
pub mod store;
pub mod wire;
