-- 7. Laboratory values from a day before to a day after each ICU stay of the admission.
SELECT s.icustay_id, seconds(l.charttime) AS timestp, l.itemid, l.valuenum
FROM labevents AS l
JOIN icustays AS s ON s.hadm_id = l.hadm_id
WHERE l.itemid IN (SELECT itemid FROM items WHERE extract = 'labs_le')
    AND l.valuenum IS NOT NULL
    AND l.charttime BETWEEN s.intime - INTERVAL 1 DAY AND s.outtime + INTERVAL 1 DAY
ORDER BY s.hadm_id, timestp, l.itemid, l.valuenum, s.icustay_id
