//! One description of everything that the public listener serves, made from the code.
//!
//! Each edge describes its own routes; here they are put together. An edge that gets public routes adds
//! its `openapi()` below, and the test fails until it has.

use utoipa::{OpenApi as _, openapi::OpenApi};

use crate::signup;

/// The description that is served at `/openapi.json`.
#[must_use]
pub fn document() -> OpenApi {
    #[derive(utoipa::OpenApi)]
    #[openapi(info(
        title = "greenshield",
        description = "Gives a fleet of Matrix bots end-to-end encryption, an identity each, and \
                       verification. Errors have Matrix's shape: `errcode` for programs, `error` for \
                       people."
    ))]
    struct Base;

    Base::openapi().merge_from(signup::openapi())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// The folders of edges whose routes are on the public listener.
    const PUBLIC: [&str; 2] = ["signup", "bot_api"];

    /// The paths in `.route("...` of the sources below `folder`, without their tests.
    fn routes(folder: &Path, found: &mut Vec<String>) {
        let Ok(entries) = fs::read_dir(folder) else {
            return;
        };
        for entry in entries {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                routes(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
                let source = fs::read_to_string(&path).expect("readable");
                let calls = source.split(".route(").skip(1);
                found.extend(calls.filter_map(|call| Some(call.split('"').nth(1)?.to_owned())));
            }
        }
    }

    #[test]
    fn every_public_route_is_described() {
        let document = serde_json::to_value(document()).expect("serialises");
        let mut found = Vec::new();
        for folder in PUBLIC {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(folder);
            routes(&folder, &mut found);
        }
        assert!(found.iter().any(|path| path == "/signup/api"), "{found:?}");
        for path in found {
            let described = document["paths"][&path].is_object();
            assert!(
                described,
                "{path} is not in the OpenAPI document: add it to its edge's openapi()"
            );
        }
    }
}
