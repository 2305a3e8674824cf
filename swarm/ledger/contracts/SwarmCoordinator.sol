// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";

/**
 * @title A swarm's ledger: its manifest, its clock, who its peers are, and what they report.
 * @notice There is no owner. Nobody can stop or upgrade the swarm, change its clock, or write for another's peer.
 * A reward is what its peer *claims*; the claim is bound to a commitment, which other peers audit.
 * A peer is the 32-byte digest inside the libp2p peer id of its RSA-2048 key (`swarm.pem`). That key is the peer:
 * it binds the peer to an account, moves it to another one, and hands everything to a new key. The account reports.
 */
contract SwarmCoordinator is EIP712 {
    /// @notice What a peer claims for one round. `verdicts` are its audits of others, in the auditors' own encoding.
    struct Report {
        uint64 round;
        uint32 groups; // how many groups the peer made
        uint64 rewardMicros; // the round's reward in micro-units
        bytes32 commitment; // root of all that the peer claims for the round
        bytes32 stateBefore; // digest of the state before the update
        bytes32 stateAfter; // digest of the state after it
        bytes verdicts;
    }

    /// @notice What the ledger holds about one peer. Rewards are sums of micro-units.
    struct PeerRecord {
        bytes32 peer;
        address account;
        uint32 rounds; // rounds reported, late ones included
        uint32 rankedRounds; // rounds reported on time
        uint128 rankedRewardMicros; // of on-time reports
        uint128 rewardMicros; // of all reports
        bytes32 head; // of the chain of reports
    }

    // One slot. A retired peer has bindings but no account.
    struct Peer {
        address account;
        uint64 id; // 1 for the first peer that ever reported, and so on; 0 before its first report
        uint32 bindings;
    }

    // What a peer's reports add up to. `sums` packs four numbers, which one addition adds to: see the constants.
    struct Tally {
        uint256 sums;
        bytes32 head;
    }

    // One entry of the list of bootnodes, newest first: announcing again moves a peer to the front.
    struct Bootnode {
        bytes32 newer;
        bytes32 older;
        uint64 expiresAt; // 0: not in the list
        string multiaddr;
    }

    /// @notice The largest manifest, in bytes.
    uint256 public constant MAX_MANIFEST_BYTES = 16 * 1024;
    /// @notice The longest multiaddr, in bytes.
    uint256 public constant MAX_MULTIADDR_BYTES = 256;
    /// @notice The most entries that one call of `bootnodes` or `records` returns.
    uint256 public constant MAX_PAGE = 256;
    /// @notice The largest `verdicts` of a report, in bytes.
    uint256 public constant MAX_VERDICTS_BYTES = 4096;
    /// @notice The most reports in one transaction.
    uint256 public constant MAX_BATCH = 64;
    /// @notice How long an announced bootnode is listed, in seconds.
    uint256 public constant BOOTNODE_SECONDS = 7 days;
    /// @notice How old an announcement may be that somebody else submits, in seconds.
    uint256 public constant MAX_ANNOUNCEMENT_AGE = 1 hours;

    // A genesis further away than this is a mistake of units (milliseconds, say), not a plan.
    uint64 private constant MAX_GENESIS_DISTANCE = 365 days;
    uint64 private constant MAX_ACCEPTANCE_WINDOW = 4096;
    uint256 private constant MAX_STAGE_ENDS = 8;
    uint32 private constant STAGE_UNITS = 1e6; // of a round

    uint256 private constant MODULUS_BYTES = 256;
    bytes private constant EXPONENT = hex"010001";
    // The one serialization of an RSA-2048 public key with exponent 65537, around its modulus:
    // libp2p's protobuf header, then DER. The same constants stand in identity/key.py.
    bytes private constant PUBLIC_KEY_PREFIX =
        hex"080012a60230820122300d06092a864886f70d01010105000382010f003082010a0282010100";
    bytes private constant PUBLIC_KEY_SUFFIX = hex"0203010001";
    // A PKCS#1 v1.5 SHA-256 signature, raised to the exponent, is these 224 bytes and the digest (RFC 8017, 9.2).
    bytes private constant ENCODING_PREFIX = hex"0001ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
        hex"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
        hex"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
        hex"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
        hex"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
        hex"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
        hex"ffffffffffffffffffffffff003031300d060960864801650304020105000420";
    bytes private constant REGISTER_DOMAIN = "swarm/1/register";
    bytes private constant ROTATE_DOMAIN = "swarm/1/rotate";

    bytes32 private constant REGISTRATION_TYPE = keccak256("Registration(bytes32 peer,uint32 binding)");
    bytes32 private constant BOOTNODE_TYPE =
        keccak256("Bootnode(bytes32 peer,string multiaddr,uint64 announcedAt)");
    bytes32 private constant REPORT_TYPE = keccak256(
        "Report(uint64 round,uint32 groups,uint64 rewardMicros,bytes32 commitment,bytes32 stateBefore,bytes32 stateAfter,bytes verdicts)"
    );
    bytes32 private constant REPORTS_TYPE = keccak256(
        "Reports(bytes32 peer,Report[] reports)Report(uint64 round,uint32 groups,uint64 rewardMicros,bytes32 commitment,bytes32 stateBefore,bytes32 stateAfter,bytes verdicts)"
    );

    // What one report adds to `Tally.sums`: all reports count in two numbers, those on time in two more. Below 2**32
    // rounds of below 2**38 each no number reaches its neighbour. From the lowest bit: the ranked reward (96 bits),
    // the reward (96), the ranked rounds (32), the rounds (32).
    uint256 private constant SUM_BITS = 96;
    uint256 private constant COUNT_BITS = 32;
    uint256 private constant ONE_ROUND = 1 << (2 * SUM_BITS + COUNT_BITS);
    uint256 private constant ONE_RANKED_ROUND = 1 << (2 * SUM_BITS);
    // How `_entries` packs a report: three to a slot, each its reward, its lateness, and the number of blocks from
    // the deployment's to its own, plus one, so that an entry that exists is never zero.
    uint256 private constant ENTRY_BITS = 85;
    uint256 private constant REWARD_BITS = 38;
    uint256 private constant LATE_BITS = 13;
    uint256 private constant BLOCK_BITS = ENTRY_BITS - REWARD_BITS - LATE_BITS;
    // How the older peer of an account's last tombstone is marked: see `_unlink`.
    bytes32 private constant END = bytes32(uint256(1));

    /// @notice The swarm's id: SHA-256 of its canonical manifest.
    bytes32 public immutable swarmId;
    /// @notice When round 0 begins, in Unix seconds.
    uint64 public immutable genesis;
    /// @notice Length of a round in seconds.
    uint64 public immutable roundSeconds;
    /// @notice A report made this many rounds after its round, or fewer, is accepted and marked late.
    uint64 public immutable acceptanceWindow;
    /// @notice The most groups that a report may claim.
    uint32 public immutable maxGroups;
    /// @notice The highest reward that a report may claim, in micro-units.
    uint64 public immutable maxRewardMicros;
    /// @notice The block of the deployment, which holds `SwarmCreated` and so the manifest.
    uint64 public immutable deploymentBlock;

    uint32[] private _stageEnds;
    mapping(bytes32 peer => Peer) private _peers;
    mapping(bytes32 retired => bytes32) private _successors;
    mapping(address account => bytes32 peer) private _newest; // head of the list of the account's peers
    mapping(address account => mapping(bytes32 peer => bytes32)) private _older; // the list itself
    bytes32[] private _reporters; // the peer of every id, less one
    mapping(uint256 id => Tally) private _tallies;
    mapping(uint256 id => mapping(uint256 word => uint256)) private _entries;
    mapping(uint256 word => uint256) private _onTime; // eight counts of 32 bits a word
    bytes32 private _newestBootnode;
    mapping(bytes32 peer => Bootnode) private _bootnodes;

    /// @notice The swarm exists. `manifest` is the canonical manifest, for those who join.
    event SwarmCreated(bytes32 indexed swarmId, uint64 genesis, uint64 roundSeconds, bytes manifest);
    /// @notice The key of `peer` and `account` agreed that the account speaks for the peer from now on.
    event Registered(bytes32 indexed peer, address indexed account);
    /// @notice `oldPeer` is retired for ever; account, score and history are `newPeer`'s.
    event Rotated(bytes32 indexed oldPeer, bytes32 indexed newPeer);
    /// @notice `peer` reported `round`. A late report keeps the chain of states but is not ranked.
    event Reported(
        bytes32 indexed peer,
        uint64 indexed round,
        bytes32 commitment,
        bytes32 stateBefore,
        bytes32 stateAfter,
        uint32 groups,
        uint64 rewardMicros,
        bool late,
        bytes verdicts
    );
    /// @notice `peer` can be reached at `multiaddr` by those who join.
    event BootnodeAnnounced(bytes32 indexed peer, string multiaddr);

    /// @notice A round of no length.
    error BadRoundSeconds();
    /// @notice More than a year from the chain's time: a mistake of units.
    error BadGenesis(uint64 genesis, uint256 timestamp);
    /// @notice The manifest has more than `MAX_MANIFEST_BYTES`.
    error ManifestTooLarge(uint256 size, uint256 max);
    /// @notice The acceptance window is not 1 to `max` rounds.
    error BadAcceptanceWindow(uint64 acceptanceWindow, uint64 max);
    /// @notice A cap is 0, or the reward's does not fit in 38 bits.
    error BadCaps(uint32 maxGroups, uint64 maxRewardMicros);
    /// @notice The stages' ends do not grow within the round, or are more than 8.
    error BadStages(uint32[] stageEnds);
    /// @notice Round 0 has not begun.
    error BeforeGenesis(uint64 genesis, uint256 timestamp);
    /// @notice Not the modulus of an RSA-2048 key.
    error BadModulus();
    /// @notice Not the signature of the peer's key over its next binding to `account`.
    error BadProof(bytes32 peer, address account);
    /// @notice Not the signature of `account` over the peer's next binding.
    error BadConsent(bytes32 peer, address account);
    /// @notice The two keys did not both sign this rotation.
    error BadRotation(bytes32 oldPeer, bytes32 newPeer);
    /// @notice The peer is bound to this very account.
    error AlreadyRegistered(bytes32 peer, address account);
    /// @notice A successor must be a key that was never registered.
    error PeerTaken(bytes32 peer);
    /// @notice The peer's key was rotated away; `successor` took over.
    error Retired(bytes32 peer, bytes32 successor);
    /// @notice No account speaks for the peer.
    error NotRegistered(bytes32 peer);
    /// @notice Only `account` speaks for the peer.
    error NotPeersAccount(bytes32 peer, address account);
    /// @notice Not the signature of `account`, the peer's, over these reports.
    error BadReportSignature(bytes32 peer, address account);
    /// @notice Not 1 to `max` reports.
    error BadBatch(uint256 size, uint256 max);
    /// @notice The round has not begun.
    error FutureRound(uint64 round, uint64 currentRound);
    /// @notice The round is over for more than `acceptanceWindow` rounds.
    error TooLate(uint64 round, uint64 currentRound);
    /// @notice A round is reported once, whatever the key or account was then.
    error AlreadyReported(bytes32 peer, uint64 round);
    /// @notice More groups than `maxGroups`.
    error TooManyGroups(uint32 groups, uint32 max);
    /// @notice More reward than `maxRewardMicros`.
    error RewardTooHigh(uint64 rewardMicros, uint64 max);
    /// @notice More bytes than `MAX_VERDICTS_BYTES`.
    error VerdictsTooLarge(uint256 size, uint256 max);
    /// @notice Signed at or before the peer's last announcement, after now, or more than an hour ago.
    error BadAnnouncementTime(uint64 announcedAt, uint256 last, uint256 timestamp);
    /// @notice Not the signature of `account`, the peer's, over this announcement.
    error BadBootnodeSignature(bytes32 peer, address account);
    /// @notice Not 1 to `MAX_MULTIADDR_BYTES` printable ASCII characters beginning with a slash.
    error BadMultiaddr();

    /**
     * @notice Create a swarm, for ever: nothing set here can change. Readers check that the manifest says the same.
     * @param manifest The canonical manifest; kept in the deployment's event, its SHA-256 in the code.
     * @param genesis_ When round 0 begins, in Unix seconds; may lie in the future.
     * @param roundSeconds_ Length of a round in seconds.
     * @param acceptanceWindow_ How many rounds a report may be late: 1 to 4096.
     * @param maxGroups_ The most groups of a report; above 0.
     * @param maxRewardMicros_ The highest reward of a report; above 0, below 2**38.
     * @param stageEnds_ Where every stage but the last ends, in millionths of a round: growing, at most 8.
     */
    constructor(
        bytes memory manifest,
        uint64 genesis_,
        uint64 roundSeconds_,
        uint64 acceptanceWindow_,
        uint32 maxGroups_,
        uint64 maxRewardMicros_,
        uint32[] memory stageEnds_
    ) EIP712("SwarmCoordinator", "1") {
        if (roundSeconds_ == 0) revert BadRoundSeconds();
        if (
            genesis_ > block.timestamp + MAX_GENESIS_DISTANCE
                || uint256(genesis_) + MAX_GENESIS_DISTANCE < block.timestamp
        ) revert BadGenesis(genesis_, block.timestamp);
        if (manifest.length > MAX_MANIFEST_BYTES) revert ManifestTooLarge(manifest.length, MAX_MANIFEST_BYTES);
        if (acceptanceWindow_ == 0 || acceptanceWindow_ > MAX_ACCEPTANCE_WINDOW) {
            revert BadAcceptanceWindow(acceptanceWindow_, MAX_ACCEPTANCE_WINDOW);
        }
        if (maxGroups_ == 0 || maxRewardMicros_ == 0 || maxRewardMicros_ >= 1 << REWARD_BITS) {
            revert BadCaps(maxGroups_, maxRewardMicros_);
        }
        _checkStages(stageEnds_);
        swarmId = sha256(manifest);
        genesis = genesis_;
        roundSeconds = roundSeconds_;
        acceptanceWindow = acceptanceWindow_;
        maxGroups = maxGroups_;
        maxRewardMicros = maxRewardMicros_;
        _stageEnds = stageEnds_;
        deploymentBlock = uint64(block.number);
        emit SwarmCreated(sha256(manifest), genesis_, roundSeconds_, manifest);
    }

    /// @notice Where every stage but the last ends, in millionths of a round.
    function stageEnds() external view returns (uint32[] memory) {
        return _stageEnds;
    }

    /// @notice The round that the clock is in: `(block.timestamp - genesis) / roundSeconds`.
    function currentRound() public view returns (uint64) {
        if (block.timestamp < genesis) revert BeforeGenesis(genesis, block.timestamp);
        return uint64((block.timestamp - genesis) / roundSeconds);
    }

    // ---- peers and accounts ----

    /**
     * @notice Bind a peer to the calling account; if it has another one, move it. The id is computed from the key.
     * @param modulus The key's modulus: 256 bytes, big-endian, odd, highest bit set. The exponent is 65537.
     * @param proof PKCS#1 v1.5 with SHA-256, by that key, over `registrationMessage(peer, msg.sender)`.
     */
    function register(bytes calldata modulus, bytes calldata proof) external {
        _bind(_provenPeer(msg.sender, modulus, proof), msg.sender);
    }

    /**
     * @notice As `register`, submitted by anyone for an account that agrees.
     * @param account The account that will speak for the peer.
     * @param modulus As in `register`.
     * @param proof As in `register`, over `registrationMessage(peer, account)`.
     * @param consent EIP-712 signature of `account` over `Registration(peer, bindings(peer))`.
     */
    function registerFor(address account, bytes calldata modulus, bytes calldata proof, bytes calldata consent)
        external
    {
        bytes32 peer = _provenPeer(account, modulus, proof);
        bytes32 structHash = keccak256(abi.encode(REGISTRATION_TYPE, peer, _peers[peer].bindings));
        if (!_isSignedBy(account, structHash, consent)) revert BadConsent(peer, account);
        _bind(peer, account);
    }

    /**
     * @notice Hand all that a peer is (account, score, history) to a new key, and retire the old one. For anyone
     * to submit: both keys signed. The new peer must never have been registered.
     * @param oldModulus Modulus of the peer's key.
     * @param newModulus Modulus of the key that takes over.
     * @param oldSignature PKCS#1 v1.5 with SHA-256, by the old key, over `rotationMessage(oldPeer, newPeer)`.
     * @param newSignature The same by the new key.
     */
    function rotate(
        bytes calldata oldModulus,
        bytes calldata newModulus,
        bytes calldata oldSignature,
        bytes calldata newSignature
    ) external {
        bytes32 oldPeer = _peerOf(oldModulus);
        bytes32 newPeer = _peerOf(newModulus);
        (address account, uint64 id) = _registered(oldPeer);
        if (_peers[newPeer].bindings != 0) revert PeerTaken(newPeer);
        bytes memory message = rotationMessage(oldPeer, newPeer);
        if (!_isRsaSignature(oldModulus, message, oldSignature) || !_isRsaSignature(newModulus, message, newSignature)) {
            revert BadRotation(oldPeer, newPeer);
        }
        (_peers[oldPeer].account, _peers[oldPeer].id) = (address(0), 0);
        _peers[newPeer] = Peer(account, id, 1);
        if (id != 0) _reporters[id - 1] = newPeer;
        _successors[oldPeer] = newPeer;
        _unlink(oldPeer, account);
        _link(newPeer, account);
        if (_bootnodes[oldPeer].expiresAt != 0) _takeOut(oldPeer);
        delete _bootnodes[oldPeer];
        emit Rotated(oldPeer, newPeer);
    }

    /**
     * @notice What a peer's key signs to be bound to `account`: it fits no other chain, contract or account, and
     * only the peer's next binding, so that nobody can undo a move with an old proof.
     * @return `"swarm/1/register" ‖ chain id (32) ‖ this contract (20) ‖ account (20) ‖ bindings(peer) (4)`.
     */
    function registrationMessage(bytes32 peer, address account) public view returns (bytes memory) {
        return abi.encodePacked(REGISTER_DOMAIN, block.chainid, address(this), account, _peers[peer].bindings);
    }

    /**
     * @notice What both keys sign to make `newPeer` the successor of `oldPeer`.
     * @return `"swarm/1/rotate" ‖ chain id (32) ‖ this contract (20) ‖ oldPeer ‖ newPeer`.
     */
    function rotationMessage(bytes32 oldPeer, bytes32 newPeer) public view returns (bytes memory) {
        return abi.encodePacked(ROTATE_DOMAIN, block.chainid, address(this), oldPeer, newPeer);
    }

    /// @notice How often `peer` was bound to an account so far.
    function bindings(bytes32 peer) external view returns (uint32) {
        return _peers[peer].bindings;
    }

    /// @notice The peer that took over from `peer`; zero if none did.
    function successorOf(bytes32 peer) external view returns (bytes32) {
        return _successors[peer];
    }

    /// @notice The account that speaks for `peer`; zero if it is not registered, or retired.
    function accountOf(bytes32 peer) external view returns (address) {
        return _peers[peer].account;
    }

    /// @notice Whether an account speaks for `peer`.
    function isRegistered(bytes32 peer) external view returns (bool) {
        return _peers[peer].account != address(0);
    }

    /// @notice The peers that `account` speaks for, in no order that means anything.
    function peersOf(address account) external view returns (bytes32[] memory peers) {
        uint256 count;
        bytes32 peer = _newest[account];
        for (; peer != 0 && peer != END; peer = _older[account][peer]) {
            if (_peers[peer].account == account) ++count;
        }
        peers = new bytes32[](count);
        peer = _newest[account];
        for (uint256 i = 0; i < count; peer = _older[account][peer]) {
            if (_peers[peer].account == account) peers[i++] = peer;
        }
    }

    // ---- reports ----

    /// @notice Report a round, once. On time if the clock is still in it; up to `acceptanceWindow` rounds after, late.
    /// @param peer The reporting peer; only its account may call.
    /// @param report_ What it claims.
    function report(bytes32 peer, Report calldata report_) external {
        uint256 id = _reporterId(peer, _idOfCaller(peer));
        Tally memory tally = _tallies[id];
        _add(peer, id, tally, report_, currentRound());
        _tallies[id] = tally;
    }

    /// @notice Report 1 to `MAX_BATCH` rounds at once, all or none.
    /// @param peer The reporting peer; only its account may call.
    /// @param reports What it claims, a round each.
    function reportBatch(bytes32 peer, Report[] calldata reports) external {
        _addAll(peer, _idOfCaller(peer), reports);
    }

    /// @notice As `reportBatch`, submitted by anyone. It needs no nonce: a round is reported once.
    /// @param peer The reporting peer.
    /// @param reports What it claims, a round each.
    /// @param signature EIP-712 signature of the peer's account over `Reports(peer, reports)`.
    function reportFor(bytes32 peer, Report[] calldata reports, bytes calldata signature) external {
        (address account, uint64 id) = _registered(peer);
        _checkBatch(reports.length);
        bytes32[] memory hashes = new bytes32[](reports.length);
        for (uint256 i = 0; i < reports.length; ++i) hashes[i] = _structHash(reports[i]);
        bytes32 structHash = keccak256(abi.encode(REPORTS_TYPE, peer, keccak256(abi.encodePacked(hashes))));
        if (!_isSignedBy(account, structHash, signature)) revert BadReportSignature(peer, account);
        _addAll(peer, id, reports);
    }

    /**
     * @notice What storage holds about one report; all zero if `peer` did not report `round`.
     * @return reported Whether it did.
     * @return rewardMicros The claimed reward.
     * @return lateRounds How many rounds after its round the report came; 0 is on time.
     * @return blockNumber The block that holds the report, for deployments of up to 2**34 blocks.
     */
    function reportOf(bytes32 peer, uint64 round)
        external
        view
        returns (bool reported, uint64 rewardMicros, uint64 lateRounds, uint64 blockNumber)
    {
        uint256 entry = _entryOf(peer, round);
        if (entry == 0) return (false, 0, 0, 0);
        rewardMicros = uint64(_low(entry, REWARD_BITS));
        lateRounds = uint64(_low(entry >> REWARD_BITS, LATE_BITS));
        blockNumber = uint64(deploymentBlock + (entry >> (REWARD_BITS + LATE_BITS)) - 1);
        return (true, rewardMicros, lateRounds, blockNumber);
    }

    /// @notice Whether `peer` reported `round`, on time or late.
    function hasReported(bytes32 peer, uint64 round) external view returns (bool) {
        return _entryOf(peer, round) != 0;
    }

    /// @notice How many peers reported `round` on time. Final once the round is over, so that all may draw from it.
    function reporters(uint64 round) external view returns (uint32) {
        return uint32(_onTime[round >> 3] >> (COUNT_BITS * (round & 7)));
    }

    /// @notice How many peers ever reported; one that rotated its key counts once.
    function reporterCount() external view returns (uint256) {
        return _reporters.length;
    }

    /// @notice The record of `peer`; all zero but its id if it is not registered, or retired (its successor has all).
    function peerRecord(bytes32 peer) public view returns (PeerRecord memory) {
        Peer storage p = _peers[peer];
        Tally storage tally = _tallies[p.id]; // of id 0: empty
        uint256 sums = tally.sums;
        return PeerRecord({
            peer: peer,
            account: p.account,
            rounds: uint32(sums >> (2 * SUM_BITS + COUNT_BITS)),
            rankedRounds: uint32(sums >> (2 * SUM_BITS)),
            rankedRewardMicros: uint128(_low(sums, SUM_BITS)),
            rewardMicros: uint128(_low(sums >> SUM_BITS, SUM_BITS)),
            head: tally.head
        });
    }

    /// @notice Records of the peers that ever reported, in the order of their first reports; retired ones appear as
    /// their successors. From the `offset`-th; at most `max` and at most `MAX_PAGE`.
    function records(uint256 offset, uint256 max) external view returns (PeerRecord[] memory page) {
        uint256 left = offset < _reporters.length ? _reporters.length - offset : 0;
        page = new PeerRecord[](Math.min(Math.min(max, MAX_PAGE), left));
        for (uint256 i = 0; i < page.length; ++i) page[i] = peerRecord(_reporters[offset + i]);
    }

    // ---- bootnodes ----

    /**
     * @notice Say where `peer` can be reached, for `BOOTNODE_SECONDS`, replacing what it said before; only its
     * account may call.
     * @param multiaddr A libp2p multiaddr: printable ASCII beginning with a slash, so that no reader trips over it.
     */
    function announceBootnode(bytes32 peer, string calldata multiaddr) external {
        _idOfCaller(peer);
        _announce(peer, multiaddr);
    }

    /**
     * @notice As `announceBootnode`, submitted by anyone.
     * @param peer The peer that can be reached.
     * @param multiaddr As in `announceBootnode`.
     * @param announcedAt When it was signed, in Unix seconds: after the peer's last announcement, so that none can be
     * brought back, and at most `MAX_ANNOUNCEMENT_AGE` ago.
     * @param signature EIP-712 signature of the peer's account over `Bootnode(peer, multiaddr, announcedAt)`.
     */
    function announceBootnodeFor(
        bytes32 peer,
        string calldata multiaddr,
        uint64 announcedAt,
        bytes calldata signature
    ) external {
        (address account,) = _registered(peer);
        uint256 expiresAt = _bootnodes[peer].expiresAt;
        uint256 last = expiresAt == 0 ? 0 : expiresAt - BOOTNODE_SECONDS;
        if (
            announcedAt <= last || announcedAt > block.timestamp
                || announcedAt + MAX_ANNOUNCEMENT_AGE < block.timestamp
        ) revert BadAnnouncementTime(announcedAt, last, block.timestamp);
        bytes32 structHash = keccak256(abi.encode(BOOTNODE_TYPE, peer, keccak256(bytes(multiaddr)), announcedAt));
        if (!_isSignedBy(account, structHash, signature)) revert BadBootnodeSignature(peer, account);
        _announce(peer, multiaddr);
    }

    function _announce(bytes32 peer, string calldata multiaddr) private {
        _checkMultiaddr(bytes(multiaddr));
        Bootnode storage entry = _bootnodes[peer];
        bytes32 newest = _newestBootnode;
        if (newest != peer) {
            if (entry.expiresAt != 0) _takeOut(peer);
            if (newest != 0) _bootnodes[newest].newer = peer;
            (entry.newer, entry.older) = (0, newest);
            _newestBootnode = peer;
        }
        entry.expiresAt = uint64(block.timestamp + BOOTNODE_SECONDS);
        entry.multiaddr = multiaddr;
        emit BootnodeAnnounced(peer, multiaddr);
    }

    /// @notice The multiaddrs that have not expired, newest first; at most `max` and at most `MAX_PAGE`.
    function bootnodes(uint256 max) external view returns (string[] memory multiaddrs) {
        max = Math.min(max, MAX_PAGE);
        uint256 count;
        bytes32 peer = _newestBootnode;
        // Newest first is also the order of expiry, so the first expired one ends the list.
        for (; count < max && block.timestamp < _bootnodes[peer].expiresAt; peer = _bootnodes[peer].older) ++count;
        multiaddrs = new string[](count);
        peer = _newestBootnode;
        for (uint256 i = 0; i < count; ++i) {
            multiaddrs[i] = _bootnodes[peer].multiaddr;
            peer = _bootnodes[peer].older;
        }
    }

    /// @notice What `peer` announced last, and from which Unix second on it is no longer listed; empty if nothing.
    function bootnodeOf(bytes32 peer) external view returns (string memory multiaddr, uint64 expiresAt) {
        return (_bootnodes[peer].multiaddr, _bootnodes[peer].expiresAt);
    }

    // ---- private ----

    function _checkStages(uint32[] memory ends) private pure {
        if (ends.length > MAX_STAGE_ENDS) revert BadStages(ends);
        uint32 previous = 0;
        for (uint256 i = 0; i < ends.length; ++i) {
            if (ends[i] <= previous || ends[i] >= STAGE_UNITS) revert BadStages(ends);
            previous = ends[i];
        }
    }

    function _peerOf(bytes calldata modulus) private pure returns (bytes32) {
        if (modulus.length != MODULUS_BYTES || modulus[0] < 0x80 || uint8(modulus[MODULUS_BYTES - 1]) & 1 == 0) {
            revert BadModulus();
        }
        return sha256(abi.encodePacked(PUBLIC_KEY_PREFIX, modulus, PUBLIC_KEY_SUFFIX));
    }

    function _provenPeer(address account, bytes calldata modulus, bytes calldata proof)
        private
        view
        returns (bytes32 peer)
    {
        peer = _peerOf(modulus);
        Peer storage p = _peers[peer];
        if (p.bindings != 0) {
            if (p.account == address(0)) revert Retired(peer, _successors[peer]);
            if (p.account == account) revert AlreadyRegistered(peer, account);
        }
        if (!_isRsaSignature(modulus, registrationMessage(peer, account), proof)) revert BadProof(peer, account);
    }

    // Not OpenZeppelin's RSA.pkcs1Sha256: that walks over the padding byte by byte, for 19,000 gas more, to accept a
    // second form of the encoding, which no signer of ours makes. There is one right encoding, so the whole of it is
    // compared, and no parser is there to be fooled.
    function _isRsaSignature(bytes calldata modulus, bytes memory message, bytes calldata signature)
        private
        view
        returns (bool)
    {
        if (signature.length != MODULUS_BYTES || !_isBelow(signature, modulus)) return false;
        (bool done, bytes memory encoding) = Math.tryModExp(signature, EXPONENT, modulus);
        return done && keccak256(encoding) == keccak256(abi.encodePacked(ENCODING_PREFIX, sha256(message)));
    }

    // Whether a < b, of 256 big-endian bytes each.
    function _isBelow(bytes calldata a, bytes calldata b) private pure returns (bool) {
        for (uint256 i = 0; i < MODULUS_BYTES; i += 32) {
            bytes32 x = bytes32(a[i:i + 32]);
            bytes32 y = bytes32(b[i:i + 32]);
            if (x != y) return x < y;
        }
        return false;
    }

    function _isSignedBy(address account, bytes32 structHash, bytes calldata signature) private view returns (bool) {
        (address signer, ECDSA.RecoverError problem,) =
            ECDSA.tryRecoverCalldata(_hashTypedDataV4(structHash), signature);
        return problem == ECDSA.RecoverError.NoError && signer == account;
    }

    function _bind(bytes32 peer, address account) private {
        Peer storage p = _peers[peer];
        (address former, uint32 count) = (p.account, p.bindings);
        (p.account, p.bindings) = (account, count + 1);
        if (former != address(0)) _unlink(peer, former);
        // A peer that comes back to an account may find its tombstone there.
        if (count == 0 || _older[account][peer] == 0) _link(peer, account);
        emit Registered(peer, account);
    }

    // An account's peers are a list that grows at its head. Who leaves from elsewhere stays in it as a tombstone
    // (readers skip whoever has another account), since to walk to him would let whoever fills the list lock him in.
    // A tombstone's older peer is never zero, by which it is known.
    function _link(bytes32 peer, address account) private {
        bytes32 newest = _newest[account];
        if (newest != 0) _older[account][peer] = newest;
        _newest[account] = peer;
    }

    function _unlink(bytes32 peer, address account) private {
        bytes32 older = _older[account][peer];
        if (_newest[account] == peer) {
            _newest[account] = older == END ? bytes32(0) : older;
            if (older != 0) delete _older[account][peer];
        } else if (older == 0) {
            _older[account][peer] = END;
        }
    }

    function _registered(bytes32 peer) private view returns (address account, uint64 id) {
        Peer storage p = _peers[peer];
        (account, id) = (p.account, p.id);
        if (account != address(0)) return (account, id);
        if (_successors[peer] != 0) revert Retired(peer, _successors[peer]);
        revert NotRegistered(peer);
    }

    function _idOfCaller(bytes32 peer) private view returns (uint64) {
        (address account, uint64 id) = _registered(peer);
        if (account != msg.sender) revert NotPeersAccount(peer, account);
        return id;
    }

    function _checkBatch(uint256 size) private pure {
        if (size == 0 || size > MAX_BATCH) revert BadBatch(size, MAX_BATCH);
    }

    function _reporterId(bytes32 peer, uint64 id) private returns (uint64) {
        if (id != 0) return id;
        _reporters.push(peer);
        id = uint64(_reporters.length);
        _peers[peer].id = id;
        return id;
    }

    function _addAll(bytes32 peer, uint64 id, Report[] calldata reports) private {
        _checkBatch(reports.length);
        id = _reporterId(peer, id);
        uint64 current = currentRound();
        Tally memory tally = _tallies[id];
        for (uint256 i = 0; i < reports.length; ++i) _add(peer, id, tally, reports[i], current);
        _tallies[id] = tally;
    }

    function _add(bytes32 peer, uint256 id, Tally memory tally, Report calldata r, uint64 current) private {
        // Fields of calldata are checked at each reading: read once.
        (uint64 round, uint32 groups, uint64 rewardMicros) = (r.round, r.groups, r.rewardMicros);
        bytes calldata verdicts = r.verdicts;
        if (round > current) revert FutureRound(round, current);
        uint64 lateRounds;
        unchecked {
            lateRounds = current - round;
        }
        if (lateRounds > acceptanceWindow) revert TooLate(round, current);
        if (groups > maxGroups) revert TooManyGroups(groups, maxGroups);
        if (rewardMicros > maxRewardMicros) revert RewardTooHigh(rewardMicros, maxRewardMicros);
        if (verdicts.length > MAX_VERDICTS_BYTES) revert VerdictsTooLarge(verdicts.length, MAX_VERDICTS_BYTES);

        mapping(uint256 word => uint256) storage entries = _entries[id];
        uint256 entry = ENTRY_BITS * (round % 3);
        uint256 word = entries[round / 3];
        if (_low(word >> entry, ENTRY_BITS) != 0) revert AlreadyReported(peer, round);
        entries[round / 3] = word | (_entry(rewardMicros, lateRounds) << entry);

        unchecked {
            tally.sums += ONE_ROUND + (uint256(rewardMicros) << SUM_BITS);
            if (round == current) {
                tally.sums += ONE_RANKED_ROUND + rewardMicros;
                _onTime[round >> 3] += 1 << (COUNT_BITS * (round & 7));
            }
        }
        tally.head = keccak256(
            abi.encode(
                tally.head,
                round,
                groups,
                rewardMicros,
                r.commitment,
                r.stateBefore,
                r.stateAfter,
                keccak256(verdicts)
            )
        );
        emit Reported(
            peer, round, r.commitment, r.stateBefore, r.stateAfter, groups, rewardMicros, round != current, verdicts
        );
    }

    function _structHash(Report calldata r) private pure returns (bytes32) {
        return keccak256(
            abi.encode(
                REPORT_TYPE,
                r.round,
                r.groups,
                r.rewardMicros,
                r.commitment,
                r.stateBefore,
                r.stateAfter,
                keccak256(r.verdicts)
            )
        );
    }

    function _entry(uint64 rewardMicros, uint64 lateRounds) private view returns (uint256) {
        // After 2**34 blocks the number stands still, so that reports neither stop nor spoil one another.
        unchecked {
            uint256 blocks = block.number - deploymentBlock + 1;
            if (blocks > (1 << BLOCK_BITS) - 1) blocks = (1 << BLOCK_BITS) - 1;
            return rewardMicros | (uint256(lateRounds) << REWARD_BITS) | (blocks << (REWARD_BITS + LATE_BITS));
        }
    }

    function _entryOf(bytes32 peer, uint64 round) private view returns (uint256) {
        return _low(_entries[_peers[peer].id][round / 3] >> (ENTRY_BITS * (round % 3)), ENTRY_BITS);
    }

    function _low(uint256 value, uint256 bits) private pure returns (uint256) {
        return value & ((1 << bits) - 1);
    }

    function _checkMultiaddr(bytes calldata multiaddr) private pure {
        if (multiaddr.length == 0 || multiaddr.length > MAX_MULTIADDR_BYTES || multiaddr[0] != "/") {
            revert BadMultiaddr();
        }
        for (uint256 i = 0; i < multiaddr.length; ++i) {
            if (multiaddr[i] <= 0x20 || multiaddr[i] >= 0x7f) revert BadMultiaddr();
        }
    }

    // Take an entry out of the list of bootnodes; its own fields stay for the caller to set.
    function _takeOut(bytes32 peer) private {
        (bytes32 newer, bytes32 older) = (_bootnodes[peer].newer, _bootnodes[peer].older);
        if (newer != 0) _bootnodes[newer].older = older;
        else _newestBootnode = older;
        if (older != 0) _bootnodes[older].newer = newer;
    }
}
