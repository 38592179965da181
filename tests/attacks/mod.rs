//! Attackers: what strangers, humans, a homeserver, and readers of the database or of the log can do,
//! and that it comes to nothing. The real program, beside a homeserver that does what a test wants.

mod canaries;
mod floods;
mod forged;
mod fuzz;
mod http;
mod mutate;
mod poison;
mod sealing_key;
mod secrets;
mod slow;
mod strangers;
mod surfaces;
mod tools;
