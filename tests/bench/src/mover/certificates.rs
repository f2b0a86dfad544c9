//! Certificates for QEMU's encrypted migration: an authority, and one certificate for each side.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};

/// The name that the source expects of the target.
pub(super) const HOSTNAME: &str = "pollux-bench";

/// Writes what QEMU's `tls-creds-x509` looks for into `dir`.
pub(super) fn write(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let authority_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut authority = CertificateParams::default();
    authority.distinguished_name = common_name("pollux-bench authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    put(dir, "ca-cert.pem", &authority.self_signed(&authority_key)?.pem())?;
    let issuer = Issuer::new(authority, authority_key);

    for (side, purpose) in
        [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
    {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(vec![HOSTNAME.to_owned()])?;
        params.distinguished_name = common_name(side);
        // QEMU insists on the second, though no cipher of today needs it.
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![purpose];
        put(dir, &format!("{side}-cert.pem"), &params.signed_by(&key, &issuer)?.pem())?;
        put(dir, &format!("{side}-key.pem"), &key.serialize_pem())?;
    }
    Ok(())
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn put(dir: &Path, name: &str, pem: &str) -> Result<()> {
    fs::write(dir.join(name), pem).with_context(|| format!("cannot write {name}"))
}
