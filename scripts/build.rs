//! Migrations are compiled in: a changed one must make the store compile again.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
