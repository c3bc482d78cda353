-- 6. Laboratory values noted at the bedside.
SELECT icustay_id, charttime, itemid, valuenum
FROM charted
WHERE itemid IN (SELECT itemid FROM items WHERE extract = 'labs_ce') AND valuenum IS NOT NULL AND icustay_id IS NOT NULL
ORDER BY icustay_id, charttime, itemid, valuenum
