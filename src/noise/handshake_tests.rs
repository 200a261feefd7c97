//! The vector of control.md 3.3, line by line, and every way to break a handshake.

use proptest::prelude::*;

use super::*;
use crate::noise::record::HEADER_LEN;

const INITIATION: &str = "00910100607b0d47d93427f8311160781c7c733fd89f88970aef490d8aa0ee19a4cb8a1b14b903b541e3810f\
    9a9f788541f1d8f2ec482568e39b9f0f56a9f4a7a56450f31a9dc60bcb4e75254359f9460a6bc3abd2a01b3a\
    2deff662afe0b9497becb6a113";
const RESPONSE: &str = "020030ff2ee45601ec1b67310c7790404585ae697331eee1c1f8cf2419731c1fff3e6bb724869747b9edde73\
    46ebd00e8c83be";

fn server() -> MachinePrivate {
    MachinePrivate::from_bytes([0x11; 32])
}

fn machine() -> MachinePrivate {
    MachinePrivate::from_bytes([0x22; 32])
}

fn initiate(version: u32) -> (Initiator, [u8; INITIATION_LEN]) {
    let ephemeral = Zeroizing::new([0x33; 32]);
    Initiator::new(&machine(), &server().public(), CapVer(version), ephemeral).unwrap()
}

fn answer(initiation: &[u8]) -> Result<Accepted, NoiseError> {
    respond(initiation, &server(), Zeroizing::new([0x44; 32]))
}

fn seal(sealer: &mut Sealer, text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    sealer.seal(text, &mut out).unwrap();
    out
}

#[test]
fn the_vector_comes_out_byte_for_byte() {
    assert_eq!(
        server().public().untyped_hex(),
        "7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13"
    );
    assert_eq!(
        machine().public().untyped_hex(),
        "0faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20"
    );
    let (client, initiation) = initiate(145);
    assert_eq!(hex::encode(initiation), INITIATION);
    let accepted = answer(&initiation).unwrap();
    assert_eq!(hex::encode(accepted.response), RESPONSE);
    assert_eq!(accepted.machine, machine().public());
    assert_eq!(accepted.capver, CapVer(145));
    let mut channel = client.finish(&accepted.response).unwrap();
    let hash = "06c59e2c9cf61b04919795c127f29cd25363c67a77723b7299ba3118c8f04886";
    assert_eq!(hex::encode(channel.hash), hash);
    assert_eq!(hex::encode(accepted.channel.hash), hash);
    assert_eq!(
        hex::encode(seal(&mut channel.sealer, b"hello")),
        "04001514a9f922c148802d01a653ad5bc589a481c5458acc"
    );
    assert_eq!(
        hex::encode(seal(&mut channel.sealer, b"world")),
        "0400153c89e3a3a5fd9087e1aef36a9762884ffe4b001b80"
    );
}

#[test]
fn the_hash_before_the_first_message_and_the_split_keys_are_the_vectors() {
    let prologue = prologue(145);
    let public = server().public();
    let private = machine();
    let mut state = builder(Zeroizing::new([0x33; 32]))
        .and_then(|b| b.prologue(prologue.as_bytes()))
        .and_then(|b| b.local_private_key(private.expose()))
        .and_then(|b| b.remote_public_key(public.as_bytes()))
        .and_then(Builder::build_initiator)
        .unwrap();
    assert_eq!(
        hex::encode(state.get_handshake_hash()),
        "8d9994a359d735a1ffe4c6f3ea3a30d152c0f13e6942db3b8693ec5457ab8f08"
    );
    state.write_message(&[], &mut [0; INITIATION_BODY]).unwrap();
    let response = hex::decode(RESPONSE).unwrap();
    state.read_message(&response[3..], &mut [0; RESPONSE_BODY]).unwrap();
    let (c2s, s2c) = split(&mut state);
    assert_eq!(hex::encode(*c2s), "97bb1ff1b3c0030ed1e8f7d54ad3728ad885ba618751ae88d5a752c3c5f31027");
    assert_eq!(hex::encode(*s2c), "67e4e0ae881d024a7aef742740ca594e486443a61ac5362959c6b1350e8e5ab0");
}

#[test]
fn both_directions_carry_records_beyond_counter_256() {
    let (client, initiation) = initiate(145);
    let accepted = answer(&initiation).unwrap();
    let mut c = client.finish(&accepted.response).unwrap();
    let mut s = accepted.channel;
    for n in 0..300_u16 {
        let text = n.to_be_bytes();
        let mut up = seal(&mut c.sealer, &text);
        assert_eq!(s.opener.open(&mut up).unwrap(), 2);
        assert_eq!(up[HEADER_LEN..HEADER_LEN + 2], text);
        let mut down = seal(&mut s.sealer, &text);
        assert_eq!(c.opener.open(&mut down).unwrap(), 2);
        assert_eq!(down[HEADER_LEN..HEADER_LEN + 2], text);
    }
}

#[test]
fn old_versions_are_refused_in_plain_words_and_new_ones_taken() {
    for version in [0, 1, 112] {
        let (_, initiation) = initiate(version);
        let refused = answer(&initiation).unwrap_err();
        assert!(matches!(refused, NoiseError::Version(CapVer(v)) if v == version));
        assert!(refused.to_string().contains("update the client"));
    }
    // 65535 is a version like any other: a client newer than we is served.
    for version in [113, 146, 65_535] {
        let (client, initiation) = initiate(version);
        let accepted = answer(&initiation).unwrap();
        assert_eq!(accepted.capver, CapVer(version));
        assert!(client.finish(&accepted.response).is_ok());
    }
    let too_big = Initiator::new(&machine(), &server().public(), CapVer(65_536), Zeroizing::new([0x33; 32]));
    assert!(matches!(too_big, Err(NoiseError::VersionRange(_))));
}

#[test]
fn every_changed_byte_breaks_the_handshake() {
    let (_, initiation) = initiate(145);
    for at in 0..INITIATION_LEN {
        let mut bad = initiation;
        bad[at] ^= 1;
        assert!(answer(&bad).is_err(), "initiation byte {at}");
    }
    for at in 0..RESPONSE_LEN {
        let (client, initiation) = initiate(145);
        let mut bad = answer(&initiation).unwrap().response;
        bad[at] ^= 1;
        assert!(client.finish(&bad).is_err(), "response byte {at}");
    }
}

#[test]
fn messages_cut_or_grown_are_refused_by_size() {
    let (_, initiation) = initiate(145);
    for cut in 0..INITIATION_LEN {
        let refused = answer(&initiation[..cut]);
        assert!(matches!(refused, Err(NoiseError::Size { .. })), "{cut}");
    }
    let mut long = initiation.to_vec();
    long.push(0);
    assert!(matches!(answer(&long), Err(NoiseError::Size { got: 102, .. })));
    for cut in 0..RESPONSE_LEN {
        let (client, initiation) = initiate(145);
        let response = answer(&initiation).unwrap().response;
        let refused = client.finish(&response[..cut]);
        assert!(matches!(refused, Err(NoiseError::Size { .. })), "{cut}");
    }
}

#[test]
fn weak_keys_are_refused_on_both_sides() {
    let mut initiation = initiate(145).1;
    initiation[5..37].fill(0);
    assert!(matches!(answer(&initiation), Err(NoiseError::WeakKey)));

    let zero = MachinePublic::from_bytes([0; 32]);
    let refused = Initiator::new(&machine(), &zero, CapVer(145), Zeroizing::new([0x33; 32]));
    assert!(matches!(refused, Err(NoiseError::WeakKey)));

    let (client, initiation) = initiate(145);
    let mut response = answer(&initiation).unwrap().response;
    response[3..35].fill(0);
    assert!(matches!(client.finish(&response), Err(NoiseError::WeakKey)));
}

#[test]
fn another_server_cannot_read_the_initiation() {
    let (_, initiation) = initiate(145);
    let other = MachinePrivate::from_bytes([0x55; 32]);
    let refused = respond(&initiation, &other, Zeroizing::new([0x44; 32]));
    assert!(matches!(refused, Err(NoiseError::Handshake)));
}

#[test]
fn error_frames_are_bounded_on_a_character() {
    assert_eq!(error_frame("no"), [3, 0, 2, b'n', b'o']);
    let long = error_frame(&"ü".repeat(4000));
    assert_eq!(long.len(), 3 + MAX_ERROR_TEXT);
    assert!(std::str::from_utf8(&long[3..]).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..140),
        tail in proptest::collection::vec(any::<u8>(), 96),
    ) {
        prop_assert!(answer(&bytes).is_err());
        let mut framed = vec![0, 145, 1, 0, 96];
        framed.extend_from_slice(&tail);
        prop_assert!(answer(&framed).is_err());
        let (client, _) = initiate(145);
        prop_assert!(client.finish(&bytes).is_err());
    }
}
