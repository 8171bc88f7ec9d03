/**
 * A batch as the model sees it: one token stream over a forest of segments, never padded. Key j is visible to query i exactly
 * when j <= i < end[j].
 */
export interface BatchData {
  /** Token ids [T]. */
  inputIds: Int32Array
  /** Positions [T]; they continue the parent segment's. */
  positions: Int32Array
  /** End of the subtree of each token's segment [T]; `j + 1` for a token that nothing may attend to. */
  end: Int32Array
  /** Loss pairs, ascending by row: row targetRows[i] predicts token targetIds[i]. A row may appear more than once. */
  targetRows: Int32Array
  targetIds: Int32Array
  /** For each sample its rows of the stream, in order: sampleRows[s][t] holds token t of sample s. */
  sampleRows: Int32Array[]
}
