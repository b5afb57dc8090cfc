//! https to a filer, with the cargo feature `tls`: whom to believe, and who we are.

use super::Settings;
use super::address::Address;

/// The client's configuration, as it is being made.
pub type Config = ureq::config::ConfigBuilder<ureq::typestate::AgentScope>;

/// # Errors
/// https is asked for, and this build has none.
#[cfg(not(feature = "tls"))]
pub fn configure(config: Config, address: &Address, settings: &Settings) -> Result<Config, String> {
    if address.is_https || settings.ca.is_some() || settings.certificate.is_some() {
        return Err("this build has no TLS; build it with --features tls".to_owned());
    }
    Ok(config)
}

/// # Errors
/// A PEM file has not what it should have.
#[cfg(feature = "tls")]
pub fn configure(config: Config, address: &Address, settings: &Settings) -> Result<Config, String> {
    use ureq::tls::{
        Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem,
    };
    if !address.is_https {
        return Ok(config);
    }
    let read =
        |pem: &[u8]| -> Result<(Vec<Certificate<'static>>, Option<PrivateKey<'static>>), String> {
            let (mut certificates, mut key) = (Vec::new(), None);
            for item in parse_pem(pem) {
                match item.map_err(|error| error.to_string())? {
                    PemItem::Certificate(certificate) => certificates.push(certificate),
                    PemItem::PrivateKey(private) => key = Some(private),
                    _ => {}
                }
            }
            Ok((certificates, key))
        };
    let mut tls = TlsConfig::builder();
    if let Some(pem) = &settings.ca {
        let (roots, _) = read(pem)?;
        if roots.is_empty() {
            return Err("CNSE_FILER_CA names a file without a certificate (PEM)".to_owned());
        }
        tls = tls.root_certs(RootCerts::new_with_certs(&roots));
    }
    if let Some(pem) = &settings.certificate {
        let (chain, key) = read(pem)?;
        let (false, Some(key)) = (chain.is_empty(), key) else {
            let why = "CNSE_FILER_CERT names a file without a certificate and its key (PEM)";
            return Err(why.to_owned());
        };
        tls = tls.client_cert(Some(ClientCert::new_with_certs(&chain, key)));
    }
    Ok(config.tls_config(tls.build()))
}
