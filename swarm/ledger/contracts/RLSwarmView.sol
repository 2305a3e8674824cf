// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Base58} from "@openzeppelin/contracts/utils/Base58.sol";
import {SwarmCoordinator} from "./SwarmCoordinator.sol";

/**
 * @title A SwarmCoordinator in the words of RL Swarm's contract, for readers that were written for that one.
 * @notice It reads and never writes. Peer ids are base58 strings (`Qm…`); one that is unknown or malformed reads as
 * zero, and so does a round that cannot be.
 * A report is per round, and counts for the round's last stage; other stages have no rewards.
 */
contract RLSwarmView {
    uint256 private constant STAGE_UNITS = 1e6; // of a round, as in SwarmCoordinator.stageEnds
    uint256 private constant PEER_ID_CHARACTERS = 46; // base58 of 34 bytes that begin with 0x1220
    bytes2 private constant MULTIHASH_PREFIX = 0x1220; // SHA-256, 32 bytes

    /// @notice The contract that this one reads.
    SwarmCoordinator public immutable coordinator;

    /// @param coordinator_ The contract to read.
    constructor(SwarmCoordinator coordinator_) {
        coordinator = coordinator_;
    }

    /// @notice The round that the clock is in; 0 also before the first begins.
    function currentRound() external view returns (uint256) {
        return block.timestamp < coordinator.genesis() ? 0 : coordinator.currentRound();
    }

    /// @notice The stage that the clock is in, from 0.
    function currentStage() external view returns (uint256 stage) {
        if (block.timestamp < coordinator.genesis()) return 0;
        uint256 roundSeconds = coordinator.roundSeconds();
        uint256 elapsed = (block.timestamp - coordinator.genesis()) % roundSeconds;
        uint32[] memory ends = coordinator.stageEnds();
        while (stage < ends.length && elapsed * STAGE_UNITS >= ends[stage] * roundSeconds) ++stage;
    }

    /// @notice How many stages a round has.
    function stageCount() external view returns (uint256) {
        return coordinator.stageEnds().length + 1;
    }

    /// @notice The peers of each account.
    function getPeerId(address[] calldata accounts) external view returns (string[][] memory ids) {
        ids = new string[][](accounts.length);
        for (uint256 i = 0; i < accounts.length; ++i) {
            bytes32[] memory peers = coordinator.peersOf(accounts[i]);
            ids[i] = new string[](peers.length);
            for (uint256 j = 0; j < peers.length; ++j) {
                ids[i][j] = Base58.encode(abi.encodePacked(MULTIHASH_PREFIX, peers[j]));
            }
        }
    }

    /// @notice The account of each peer.
    function getEoa(string[] calldata peerIds) external view returns (address[] memory accounts) {
        accounts = new address[](peerIds.length);
        for (uint256 i = 0; i < peerIds.length; ++i) accounts[i] = coordinator.accountOf(_peer(peerIds[i]));
    }

    /// @notice The multiaddrs of bootnodes, newest first; at most 256.
    function getBootnodes() public view returns (string[] memory) {
        return coordinator.bootnodes(type(uint256).max);
    }

    /// @notice How many `getBootnodes` returns.
    function getBootnodesCount() external view returns (uint256) {
        return getBootnodes().length;
    }

    /// @notice The reward of each peer's on-time reports, in micro-units.
    function getTotalRewards(string[] calldata peerIds) external view returns (int256[] memory rewards) {
        rewards = new int256[](peerIds.length);
        for (uint256 i = 0; i < peerIds.length; ++i) {
            rewards[i] = int256(uint256(_record(peerIds[i]).rankedRewardMicros));
        }
    }

    /// @notice What all peers of each account reported for the round, late reports included, in micro-units.
    function getRoundStageReward(uint256 round, uint256 stage, address[] calldata accounts)
        external
        view
        returns (int256[] memory rewards)
    {
        rewards = new int256[](accounts.length);
        if (!_holdsReports(round, stage)) return rewards;
        for (uint256 i = 0; i < accounts.length; ++i) {
            bytes32[] memory peers = coordinator.peersOf(accounts[i]);
            for (uint256 j = 0; j < peers.length; ++j) {
                (, uint64 rewardMicros,,) = coordinator.reportOf(peers[j], uint64(round));
                rewards[i] += int256(uint256(rewardMicros));
            }
        }
    }

    /// @notice Whether the peer reported the round, on time or late.
    function hasSubmittedRoundStageReward(uint256 round, uint256 stage, string calldata peerId)
        external
        view
        returns (bool)
    {
        return _holdsReports(round, stage) && coordinator.hasReported(_peer(peerId), uint64(round));
    }

    /// @notice How many rounds the peer reported on time.
    function getTotalWins(string calldata peerId) external view returns (uint256) {
        return _record(peerId).rankedRounds;
    }

    /// @notice How many rounds the peer reported.
    function getVoterVoteCount(string calldata peerId) external view returns (uint256) {
        return _record(peerId).rounds;
    }

    /// @notice How many peers ever reported.
    function uniqueVoters() external view returns (uint256) {
        return coordinator.reporterCount();
    }

    function _holdsReports(uint256 round, uint256 stage) private view returns (bool) {
        return round <= type(uint64).max && stage == coordinator.stageEnds().length;
    }

    function _record(string calldata peerId) private view returns (SwarmCoordinator.PeerRecord memory) {
        return coordinator.peerRecord(_peer(peerId));
    }

    // The digest inside a peer id; 0, which is nobody's, if it is malformed. Base58.decode would revert.
    function _peer(string calldata peerId) private pure returns (bytes32) {
        if (bytes(peerId).length != PEER_ID_CHARACTERS) return 0;
        for (uint256 i = 0; i < PEER_ID_CHARACTERS; ++i) if (!_isBase58(bytes(peerId)[i])) return 0;
        bytes memory multihash = Base58.decode(peerId);
        if (multihash.length != 34 || bytes2(multihash) != MULTIHASH_PREFIX) return 0;
        bytes32 digest;
        assembly ("memory-safe") {
            digest := mload(add(multihash, 34)) // past the length and the prefix
        }
        return digest;
    }

    function _isBase58(bytes1 c) private pure returns (bool) {
        if (c >= "1" && c <= "9") return true;
        if (c >= "A" && c <= "Z") return c != "I" && c != "O";
        return c >= "a" && c <= "z" && c != "l";
    }
}
