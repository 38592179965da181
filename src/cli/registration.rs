//! `greenshield registration`

use clap::Args;

use super::{error::CliError, output};
use crate::{
    config::Config,
    registration::{Expected, Registration, SENDER_LENGTH, TOKEN_LENGTH},
    secret::{self, Alphabet},
};

const EXAMPLES: &str = "\
Examples:
  greenshield registration
  greenshield registration --force     after the tokens have leaked";

#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Replace the file that is there. The homeserver must then be given the new one.
    #[arg(long)]
    force: bool,
}

pub(super) fn run(config: &Config, arguments: &Arguments) -> Result<(), CliError> {
    let token = || secret::random_secret(Alphabet::Alphanumeric, TOKEN_LENGTH);
    let drawn = token().and_then(|as_token| {
        let sender = secret::random_string(Alphabet::Lower, SENDER_LENGTH)?;
        Ok((as_token, token()?, sender))
    });
    let (as_token, hs_token, sender) = drawn.map_err(|error| CliError::Other(error.into()))?;
    let registration = Registration::new(expected(config), as_token, hs_token, sender);
    let file = &config.appservice.registration_file;
    let replaced = file.exists();
    registration.write(file, arguments.force)?;
    let place = file.display();
    output::line(&format!("Wrote {place}. It holds secrets."));
    output::line(
        "Give it to the homeserver: in Synapse, name it under `app_service_config_files` in \
         homeserver.yaml, set the `experimental_features` that registration.example.yaml names, and \
         restart Synapse.",
    );
    if replaced {
        output::line(
            "The file that was there is replaced: until the homeserver has been given the new one, \
             nothing works. Then restart greenshield.",
        );
    }
    Ok(())
}

/// What the configuration says that the registration has to say too.
pub(super) fn expected(config: &Config) -> Expected<'_> {
    Expected {
        id: &config.appservice.id,
        url: &config.appservice.url,
        server_name: config.homeserver.server_name.as_str(),
        localpart_prefix: &config.bots.localpart_prefix,
    }
}
