// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {RSA} from "@openzeppelin/contracts/utils/cryptography/RSA.sol";

/**
 * @title A swarm's ledger: its manifest, its clock, who its peers are, and what they report.
 * @notice There is no owner. Nobody can stop or upgrade the swarm, change its clock, or write for another's peer.
 * A reward is what its peer *claims*; the claim is bound to a commitment, which other peers audit.
 * A peer is the 32-byte digest inside the libp2p peer id of its RSA-2048 key (`swarm.pem`).
 */
contract SwarmCoordinator {
    /// @notice What the ledger holds about one peer. Rewards are sums of micro-units.
    struct PeerRecord {
        bytes32 peer;
        address account;
        uint32 rounds; // rounds reported, late ones included
        uint32 rankedRounds; // rounds reported on time
        uint128 rankedRewardMicros; // of on-time reports
        uint128 rewardMicros; // of all reports
    }

    // PeerRecord as it is stored, in two slots.
    struct Peer {
        address account;
        uint32 rounds;
        uint32 rankedRounds;
        uint128 rankedRewardMicros;
        uint128 rewardMicros;
    }

    struct RoundCounts {
        uint64 onTime;
        uint64 late;
    }

    // One entry of the list of bootnodes, newest first: announcing again moves a peer to the front.
    struct Bootnode {
        bytes32 newer;
        bytes32 older;
        string multiaddr;
    }

    /// @notice A report made this many rounds after its round, or fewer, is accepted and marked late.
    uint64 public constant ACCEPTANCE_WINDOW = 32;
    /// @notice The largest manifest, in bytes.
    uint256 public constant MAX_MANIFEST_BYTES = 16 * 1024;
    /// @notice The longest multiaddr, in bytes.
    uint256 public constant MAX_MULTIADDR_BYTES = 256;
    /// @notice The most entries that one call of `bootnodes` or `records` returns.
    uint256 public constant MAX_PAGE = 256;

    // A genesis further away than this is a mistake of units (milliseconds, say), not a plan.
    uint64 private constant MAX_GENESIS_DISTANCE = 365 days;
    uint256 private constant MODULUS_BYTES = 256;
    bytes private constant EXPONENT = hex"010001";
    // The one serialization of an RSA-2048 public key with exponent 65537, around its modulus:
    // libp2p's protobuf header, then DER. The same constants stand in identity/key.py.
    bytes private constant PUBLIC_KEY_PREFIX =
        hex"080012a60230820122300d06092a864886f70d01010105000382010f003082010a0282010100";
    bytes private constant PUBLIC_KEY_SUFFIX = hex"0203010001";
    bytes private constant REGISTER_DOMAIN = "swarm/1/register";

    /// @notice The swarm's id: SHA-256 of its canonical manifest.
    bytes32 public immutable swarmId;
    /// @notice When round 0 begins, in Unix seconds.
    uint64 public immutable genesis;
    /// @notice Length of a round in seconds.
    uint64 public immutable roundSeconds;
    /// @notice The block of the deployment, which holds `SwarmCreated` and so the manifest.
    uint64 public immutable deploymentBlock;

    bytes32[] private _peers; // in the order of their registration
    mapping(bytes32 peer => Peer) private _records;
    mapping(bytes32 peer => mapping(uint256 word => uint256 bits)) private _reported; // 256 rounds a word
    mapping(uint64 round => RoundCounts) private _rounds;
    bytes32 private _newestBootnode;
    mapping(bytes32 peer => Bootnode) private _bootnodes;

    /// @notice The swarm exists. `manifest` is the canonical manifest, for those who join.
    event SwarmCreated(bytes32 indexed swarmId, uint64 genesis, uint64 roundSeconds, bytes manifest);
    /// @notice `account` proved that it holds the key of `peer`, and speaks for it from now on.
    event Registered(bytes32 indexed peer, address indexed account);
    /// @notice `peer` reported `round`. A late report keeps the chain of states but is not ranked.
    event Reported(
        bytes32 indexed peer,
        uint64 indexed round,
        bytes32 commitment,
        bytes32 stateBefore,
        bytes32 stateAfter,
        uint32 groups,
        uint64 rewardMicros,
        bool late
    );
    /// @notice `peer` can be reached at `multiaddr` by those who join.
    event BootnodeAnnounced(bytes32 indexed peer, string multiaddr);

    error BadRoundSeconds();
    error BadGenesis(uint64 genesis, uint256 timestamp);
    error ManifestTooLarge(uint256 size, uint256 max);
    error BeforeGenesis(uint64 genesis, uint256 timestamp);
    error BadModulus();
    error BadProof(bytes32 peer, address account);
    error AlreadyRegistered(bytes32 peer, address account);
    error NotRegistered(bytes32 peer);
    error NotPeersAccount(bytes32 peer, address account);
    error FutureRound(uint64 round, uint64 currentRound);
    error TooLate(uint64 round, uint64 currentRound);
    error AlreadyReported(bytes32 peer, uint64 round);
    error BadMultiaddr();

    /**
     * @notice Create a swarm, for ever: nothing set here can change.
     * @param manifest The canonical manifest; kept in the deployment's event, its SHA-256 in storage.
     * @param genesis_ When round 0 begins, in Unix seconds; may lie in the future.
     * @param roundSeconds_ Length of a round in seconds; readers check that the manifest says the same.
     */
    constructor(bytes memory manifest, uint64 genesis_, uint64 roundSeconds_) {
        if (roundSeconds_ == 0) revert BadRoundSeconds();
        if (
            genesis_ > block.timestamp + MAX_GENESIS_DISTANCE
                || uint256(genesis_) + MAX_GENESIS_DISTANCE < block.timestamp
        ) revert BadGenesis(genesis_, block.timestamp);
        if (manifest.length > MAX_MANIFEST_BYTES) revert ManifestTooLarge(manifest.length, MAX_MANIFEST_BYTES);
        swarmId = sha256(manifest);
        genesis = genesis_;
        roundSeconds = roundSeconds_;
        deploymentBlock = uint64(block.number);
        emit SwarmCreated(sha256(manifest), genesis_, roundSeconds_, manifest);
    }

    /// @notice The round that the clock is in: `(block.timestamp - genesis) / roundSeconds`.
    function currentRound() public view returns (uint64) {
        if (block.timestamp < genesis) revert BeforeGenesis(genesis, block.timestamp);
        return uint64((block.timestamp - genesis) / roundSeconds);
    }

    /**
     * @notice Bind a peer to the calling account, once and for ever. The peer's id is computed from its key.
     * @param modulus The key's modulus: 256 bytes, big-endian, odd, highest bit set. The exponent is 65537.
     * @param signature PKCS#1 v1.5 with SHA-256, by that key, over `registrationMessage(msg.sender)`.
     */
    function register(bytes calldata modulus, bytes calldata signature) external {
        if (modulus.length != MODULUS_BYTES || modulus[0] < 0x80 || uint8(modulus[MODULUS_BYTES - 1]) & 1 == 0) {
            revert BadModulus();
        }
        bytes32 peer = sha256(abi.encodePacked(PUBLIC_KEY_PREFIX, modulus, PUBLIC_KEY_SUFFIX));
        address account = _records[peer].account;
        if (account != address(0)) revert AlreadyRegistered(peer, account);
        if (!RSA.pkcs1Sha256(registrationMessage(msg.sender), signature, EXPONENT, modulus)) {
            revert BadProof(peer, msg.sender);
        }
        _records[peer].account = msg.sender;
        _peers.push(peer);
        emit Registered(peer, msg.sender);
    }

    /**
     * @notice What a peer's key signs to register with `account`: it fits no other chain, contract or account.
     * @return The bytes `"swarm/1/register" ‖ chain id (32) ‖ this contract (20) ‖ account (20)`.
     */
    function registrationMessage(address account) public view returns (bytes memory) {
        return abi.encodePacked(REGISTER_DOMAIN, block.chainid, address(this), account);
    }

    /**
     * @notice Report a round, once. On time if the clock is still in it; up to `ACCEPTANCE_WINDOW` rounds after, late.
     * @param peer The reporting peer; only its account may call.
     * @param round The reported round.
     * @param commitment Root of all that the peer claims for the round.
     * @param stateBefore Digest of the state before the update.
     * @param stateAfter Digest of the state after it.
     * @param groups How many groups the peer made.
     * @param rewardMicros The round's reward in micro-units.
     */
    function report(
        bytes32 peer,
        uint64 round,
        bytes32 commitment,
        bytes32 stateBefore,
        bytes32 stateAfter,
        uint32 groups,
        uint64 rewardMicros
    ) external {
        Peer storage record = _recordOfCaller(peer);
        bool late = _markReported(peer, round);
        record.rounds += 1;
        record.rewardMicros += rewardMicros;
        if (late) {
            _rounds[round].late += 1;
        } else {
            record.rankedRounds += 1;
            record.rankedRewardMicros += rewardMicros;
            _rounds[round].onTime += 1;
        }
        emit Reported(peer, round, commitment, stateBefore, stateAfter, groups, rewardMicros, late);
    }

    /**
     * @notice Say where `peer` can be reached, replacing what it said before; only its account may call.
     * @param multiaddr A libp2p multiaddr: printable ASCII beginning with a slash, so that no reader trips over it.
     */
    function announceBootnode(bytes32 peer, string calldata multiaddr) external {
        _recordOfCaller(peer);
        _checkMultiaddr(bytes(multiaddr));
        Bootnode storage entry = _bootnodes[peer];
        entry.multiaddr = multiaddr;
        _moveToFront(peer, entry);
        emit BootnodeAnnounced(peer, multiaddr);
    }

    /// @notice The multiaddrs announced last, newest first; at most `max` and at most `MAX_PAGE`.
    function bootnodes(uint256 max) external view returns (string[] memory multiaddrs) {
        if (max > MAX_PAGE) max = MAX_PAGE;
        uint256 count;
        bytes32 peer = _newestBootnode;
        for (; peer != 0 && count < max; peer = _bootnodes[peer].older) ++count;
        multiaddrs = new string[](count);
        peer = _newestBootnode;
        for (uint256 i = 0; i < count; ++i) {
            multiaddrs[i] = _bootnodes[peer].multiaddr;
            peer = _bootnodes[peer].older;
        }
    }

    /// @notice The account that speaks for `peer`; zero if it is not registered.
    function accountOf(bytes32 peer) external view returns (address) {
        return _records[peer].account;
    }

    /// @notice Whether `peer` is registered.
    function isRegistered(bytes32 peer) external view returns (bool) {
        return _records[peer].account != address(0);
    }

    /// @notice How many peers ever registered.
    function peerCount() external view returns (uint256) {
        return _peers.length;
    }

    /// @notice The record of `peer`; all zero but its id if it is not registered.
    function peerRecord(bytes32 peer) public view returns (PeerRecord memory) {
        Peer storage r = _records[peer];
        return PeerRecord(peer, r.account, r.rounds, r.rankedRounds, r.rankedRewardMicros, r.rewardMicros);
    }

    /// @notice Records in the order of registration, from the `offset`-th; at most `max` and at most `MAX_PAGE`.
    function records(uint256 offset, uint256 max) external view returns (PeerRecord[] memory page) {
        uint256 left = offset < _peers.length ? _peers.length - offset : 0;
        if (max > MAX_PAGE) max = MAX_PAGE;
        if (max > left) max = left;
        page = new PeerRecord[](max);
        for (uint256 i = 0; i < max; ++i) page[i] = peerRecord(_peers[offset + i]);
    }

    /// @notice Whether `peer` reported `round`, on time or late.
    function hasReported(bytes32 peer, uint64 round) external view returns (bool) {
        return _reported[peer][round >> 8] & (1 << (round & 0xff)) != 0;
    }

    /// @notice How many peers reported `round` on time. Final once the round is over, so that all may draw from it.
    function reporters(uint64 round) external view returns (uint64) {
        return _rounds[round].onTime;
    }

    /// @notice How many peers reported `round` late; grows until the acceptance window closes.
    function lateReporters(uint64 round) external view returns (uint64) {
        return _rounds[round].late;
    }

    function _recordOfCaller(bytes32 peer) private view returns (Peer storage record) {
        record = _records[peer];
        if (record.account == address(0)) revert NotRegistered(peer);
        if (record.account != msg.sender) revert NotPeersAccount(peer, record.account);
    }

    function _markReported(bytes32 peer, uint64 round) private returns (bool late) {
        uint64 current = currentRound();
        if (round > current) revert FutureRound(round, current);
        if (current - round > ACCEPTANCE_WINDOW) revert TooLate(round, current);
        uint256 word = _reported[peer][round >> 8];
        uint256 bit = 1 << (round & 0xff);
        if (word & bit != 0) revert AlreadyReported(peer, round);
        _reported[peer][round >> 8] = word | bit;
        return round < current;
    }

    function _checkMultiaddr(bytes calldata multiaddr) private pure {
        if (multiaddr.length == 0 || multiaddr.length > MAX_MULTIADDR_BYTES || multiaddr[0] != "/") {
            revert BadMultiaddr();
        }
        for (uint256 i = 0; i < multiaddr.length; ++i) {
            if (multiaddr[i] <= 0x20 || multiaddr[i] >= 0x7f) revert BadMultiaddr();
        }
    }

    function _moveToFront(bytes32 peer, Bootnode storage entry) private {
        bytes32 newest = _newestBootnode;
        if (newest == peer) return;
        (bytes32 newer, bytes32 older) = (entry.newer, entry.older);
        if (newer != 0) _bootnodes[newer].older = older;
        if (older != 0) _bootnodes[older].newer = newer;
        if (newest != 0) _bootnodes[newest].newer = peer;
        (entry.newer, entry.older) = (0, newest);
        _newestBootnode = peer;
    }
}
